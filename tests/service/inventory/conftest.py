"""The inventory as a process on a real broker and a real database, with fake agents around it."""

from __future__ import annotations

import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from contracts import errors, inventory, snapshots
from contracts.promise import Rpc
from deploy.stack.postgres import NoPostgres, Postgres
from tests.fakes.agent import FakeAgent
from tests.fakes.bus import Bus
from tests.fakes.process import Process
from tests.fakes.rabbitmq import Rabbit

GIB = 2**30
Ask = dict[str, Any]
QUICK = {"heartbeat_interval": 0.5, "heartbeat_grace": 4, "tidy_interval": 0.5, "facts_interval": 1.0}


def new_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(pathlib.Path("/tmp") / f"drys-pg-{os.getpid()}")
    try:
        server.start()
    except NoPostgres as reason:
        pytest.skip(str(reason))
    try:
        yield server
    finally:
        server.end()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """A fresh database of each sort."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/inventory.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    name = f"d{uuid.uuid4().hex}"
    engine = sa.create_engine(server.url(), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.url(name)


class Site:
    """One data center with a cluster, seen through the bus; helpers speak the glossary."""

    def __init__(self, bus: Bus, start: Callable[..., Process]) -> None:
        self.bus, self._start = bus, start
        self.process = start()
        self.agents: list[FakeAgent] = []
        self.data_center = self.ask(inventory.create_data_center, id=new_id(), name="dc")
        self.cluster = self.ask(inventory.create_cluster, id=new_id(), name="cl", data_center_id=self.data_center["id"])
        self.idle_asks = bus.answer(snapshots.check_idle, lambda request: self.idle(request["id"]))
        self.busy: dict[str, errors.Problem] = {}

    def ask(self, promise: Rpc, **request: Any) -> Ask:
        return self.bus.call(promise, request)

    def restart(self, **settings: Any) -> None:
        self.process = self._start(**settings)

    def idle(self, id_: str) -> Ask:
        if id_ in self.busy:
            raise self.busy[id_]
        return {}

    # -- things -------------------------------------------------------------------------------------------

    def host(self, name: str = "h1") -> FakeAgent:
        """A host whose agent was heard."""
        storage = self.agents[0].world.storage if self.agents else None
        agent = FakeAgent(self.bus, new_id(), storage, interval=0.2, tick=0.05)
        self.ask(inventory.create_host, id=agent.host_id, name=name, cluster_id=self.cluster["id"])
        self.agents.append(agent)
        agent.start()
        self.until(inventory.get_host, agent.host_id, state="up")
        return agent

    def domain(self, name: str = "d1", **more: Any) -> Ask:
        more = {"path": f"/srv/{name}", **more}
        own = {"id": new_id(), "name": name, "data_center_id": self.data_center["id"]}
        return self.ask(inventory.create_storage_domain, **{**own, **more})

    def vm(self, name: str = "vm1", **more: Any) -> Ask:
        own = {"id": new_id(), "name": name, "cluster_id": self.cluster["id"], "memory": 64 * 2**20}
        return self.ask(inventory.create_vm, **{**own, **more})

    def disk(self, domain: Ask, vm: Ask | None = None, alias: str = "disk1", **more: Any) -> Ask:
        own = {"id": new_id(), "alias": alias, "domain_id": domain["id"], "capacity": GIB}
        return self.ask(inventory.create_disk, **{**own, "vm_id": vm and vm["id"], **more})

    # -- looking ------------------------------------------------------------------------------------------

    def get_vm(self, vm: Ask) -> Ask:
        return self.ask(inventory.get_vm, id=vm["id"])

    def get_host(self, agent: FakeAgent) -> Ask:
        return self.ask(inventory.get_host, id=agent.host_id)

    def until(self, promise: Rpc, id_: str, seconds: float = 20.0, **fields: Any) -> Ask:
        """The object once it has these fields."""
        ends = time.monotonic() + seconds
        while True:
            seen = self.ask(promise, id=id_)
            if all(seen[name] == value for name, value in fields.items()):
                return seen
            assert time.monotonic() < ends, f"after {seconds} s it is still {seen}"
            time.sleep(0.05)

    def latest(self, domain: Ask) -> Ask:
        return self.ask(inventory.get_storage_domain, id=domain["id"])

    def until_clock(self, agent: FakeAgent, *, off: bool, seconds: float = 20.0) -> None:
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
def settings() -> dict[str, Any]:
    return dict(QUICK)


@pytest.fixture
def site(
    rabbit: Rabbit, bus: Bus, database_url: str, tmp_path: pathlib.Path, settings: dict[str, Any]
) -> Iterator[Site]:
    started: list[Process] = []

    def start(**more: Any) -> Process:
        all_settings = {"amqp_uri": rabbit.uri, "database_url": database_url, **settings, **more}
        process = Process("services.inventory", tmp_path / "inventory", **all_settings)
        process.log_path = tmp_path / f"inventory{len(started)}.log"
        started.append(process.start())
        process.wait_for_log("started")
        return process

    made = Site(bus, start)
    yield made
    made.end()
    for process in started:
        if process.alive():
            process.kill()
