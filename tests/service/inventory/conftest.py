"""The inventory as a process on a real broker and a real database, with fake agents around it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from contracts import errors, inventory, snapshots
from contracts.promise import Rpc
from tests.fakes.agent import FakeAgent
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.databases import Postgres
from tests.fakes.process import Process

GIB = 2**30
Ask = dict[str, Any]
# A grace of 6 s: on a busy machine a fake agent's heartbeat may come seconds late.
QUICK = {"heartbeat_interval": 0.5, "heartbeat_grace": 12, "tidy_interval": 0.5, "facts_interval": 1.0}
Start = Callable[..., Process]


def new_id() -> str:
    return str(uuid.uuid4())


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh database of each sort for a whole file of tests."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('inventory')}/inventory.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.fresh()


@pytest.fixture(scope="module")
def start(rabbit: Broker, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """start(crash=...): an inventory on this database; it ends with the file of tests."""
    folder = tmp_path_factory.mktemp("process")
    started: list[Process] = []

    def run(**settings: Any) -> Process:
        given = {"amqp_uri": rabbit.uri, "database_url": database_url, **QUICK, **settings}
        process = Process("services.inventory", folder, **given)
        process.log_path = folder / f"inventory{len(started)}.log"
        started.append(process.start())
        process.wait_for_log("started")
        return process

    yield run
    for process in started:
        if process.alive():
            process.kill()


@pytest.fixture(scope="module")
def served(start: Start) -> list[Process]:
    """The one process of a file of tests; a test that kills it appends the next one."""
    return [start()]


class Site:
    """One data center with a cluster, seen through the bus; helpers speak the glossary.

    All tests of a file share the service and its database, so what must be unique there gets a suffix.
    """

    def __init__(self, bus: Bus, served: list[Process], start: Start) -> None:
        self.bus, self._served, self._start = bus, served, start
        self.agents: list[FakeAgent] = []
        self.data_center = self.ask(inventory.create_data_center, id=new_id(), name=unique("dc"))
        center = self.data_center["id"]
        self.cluster = self.ask(inventory.create_cluster, id=new_id(), name=unique("cl"), data_center_id=center)
        self.idle_asks = bus.answer(snapshots.check_idle, lambda request: self.idle(request["id"]))
        self.busy: dict[str, errors.Problem] = {}

    def ask(self, promise: Rpc, **request: Any) -> Ask:
        return self.bus.call(promise, request)

    @property
    def process(self) -> Process:
        return self._served[-1]

    def restart(self, **settings: Any) -> None:
        if self.process.alive():
            self.process.kill()
        self._served.append(self._start(**settings))

    def idle(self, id_: str) -> Ask:
        if id_ in self.busy:
            raise self.busy[id_]
        return {}

    # -- things -------------------------------------------------------------------------------------------

    def host(self, name: str = "h1") -> FakeAgent:
        """A host whose agent was heard."""
        storage = self.agents[0].world.storage if self.agents else None
        agent = FakeAgent(self.bus, new_id(), storage, interval=0.2, tick=0.05)
        self.ask(inventory.create_host, id=agent.host_id, name=unique(name), cluster_id=self.cluster["id"])
        self.agents.append(agent)
        agent.start()
        self.until(inventory.get_host, agent.host_id, state="up")
        return agent

    def domain(self, name: str = "d1", **more: Any) -> Ask:
        more = {"path": f"/srv/{name}", **more}
        own = {"id": new_id(), "name": unique(name), "data_center_id": self.data_center["id"]}
        return self.ask(inventory.create_storage_domain, **{**own, **more})

    def vm(self, name: str = "vm1", **more: Any) -> Ask:
        own = {"id": new_id(), "name": name, "cluster_id": self.cluster["id"], "memory": 64 * 2**20}
        return self.ask(inventory.create_vm, **{**own, **more})

    def disk(self, domain: Ask, vm: Ask | None = None, alias: str = "disk1", **more: Any) -> Ask:
        own = {"id": new_id(), "alias": alias, "domain_id": domain["id"], "capacity": GIB}
        return self.ask(inventory.create_disk, **{**own, "vm_id": vm and vm["id"], **more})

    def template(self, vm: Ask, name: str = "golden") -> Ask:
        return self.ask(inventory.create_template, id=new_id(), name=unique(name), vm_id=vm["id"])

    # -- looking ------------------------------------------------------------------------------------------

    def get_vm(self, vm: Ask) -> Ask:
        return self.ask(inventory.get_vm, id=vm["id"])

    def get_host(self, agent: FakeAgent) -> Ask:
        return self.ask(inventory.get_host, id=agent.host_id)

    def until(self, promise: Rpc, id_: str, seconds: float = 60.0, **fields: Any) -> Ask:
        """The object once it has these fields."""
        ends = time.monotonic() + seconds
        while True:
            seen = self.ask(promise, id=id_)
            if all(seen[name] == value for name, value in fields.items()):
                return seen
            assert time.monotonic() < ends, f"after {seconds} s it is still {seen}"
            time.sleep(0.05)

    def disk_becomes(self, disk: Ask, state: str) -> Ask:
        return self.until(inventory.get_disk, disk["id"], seconds=90, state=state)

    def latest(self, domain: Ask) -> Ask:
        return self.ask(inventory.get_storage_domain, id=domain["id"])

    def until_clock(self, agent: FakeAgent, *, off: bool, seconds: float = 60.0) -> None:
        ends = time.monotonic() + seconds
        while (abs(self.get_host(agent)["clock_offset"]) > 2.0) is not off:
            assert time.monotonic() < ends, self.get_host(agent)
            time.sleep(0.05)

    def vm_becomes(self, vm: Ask, state: str, **fields: Any) -> Ask:
        return self.until(inventory.get_vm, vm["id"], state=state, **fields)

    def end(self) -> None:
        for agent in self.agents:
            agent.stop()


@pytest.fixture
def site(bus: Bus, served: list[Process], start: Start) -> Iterator[Site]:
    if not served[-1].alive():  # an earlier test failed while it was dead
        served.append(start())
    made = Site(bus, served, start)
    yield made
    made.end()
