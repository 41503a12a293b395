"""The inventory in virtual time: its flows on SQLite, agents as worlds in memory, no bus."""

from __future__ import annotations

import pathlib
import uuid
from typing import Any

from chassis import clock, logs, migrate
from chassis.database import Database
from contracts import errors, hostagent, inventory
from contracts.promise import Rpc
from services.inventory import centers, clones, disks, domains, hosts, runs, store, tables
from services.inventory.peers import Peers
from services.inventory.scene import Scene
from services.inventory.settings import InventorySettings
from tests.fakes.agent import FACTS
from tests.fakes.agent_storage import Storage
from tests.fakes.agent_world import World

Ask = dict[str, Any]


def new_id() -> str:
    return str(uuid.uuid4())


class Direct:
    """Carries calls to worlds without a bus. `lost`: promises whose answers are lost; `away`: never carried out,
    and the caller cannot know; `late`: refused because their deadline has passed."""

    def __init__(self) -> None:
        self.worlds: dict[str, World] = {}
        self.lost: set[str] = set()
        self.away: set[str] = set()
        self.late: set[str] = set()
        self.calls: list[str] = []

    def call(self, promise: Rpc, request: Ask, *, at: str | None = None, deadline: float | None = None) -> Ask:
        self.calls.append(promise.method)
        if promise.service != hostagent.OWNER:
            return {}
        no_answer = errors.NoAnswer(service=at, method=promise.method, seconds=promise.deadline)
        if promise.method in self.away:
            raise no_answer
        if promise.method in self.late:
            raise errors.Late(service=at, method=promise.method, seconds=1.0)
        assert at is not None
        answer: Ask = getattr(self.worlds[at], promise.method)(promise.load_request(request))
        if promise.method in self.lost:
            raise no_answer
        return promise.load_reply(answer)


class Town:
    """One data center with two hosts over one storage."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.clock = clock.FakeClock()
        self.bus = Direct()
        database = Database(f"sqlite:///{folder}/inventory.sqlite", self.clock)
        migrate.upgrade(database, "services.inventory")
        self.scene = Scene(database, self.clock, Peers(self.bus), InventorySettings(), logs.get("test"))
        self.center, self.cluster = new_id(), new_id()
        self.write(centers.create_data_center, inventory.create_data_center, id=self.center, name="dc")
        self.write(
            centers.create_cluster, inventory.create_cluster, id=self.cluster, name="c", data_center_id=self.center
        )
        self.storage, self.sequence = Storage(), 0
        self.hosts = [self.host("h1"), self.host("h2")]

    def write(self, work: Any, promise: Rpc, **ask: Any) -> Ask:
        loaded = promise.load_request(ask)
        answer: Ask = self.scene.write(lambda session: work(self.scene, session, loaded))
        return answer

    def host(self, name: str) -> World:
        world = World(new_id(), self.storage)
        self.bus.worlds[world.host_id] = world
        self.write(hosts.create, inventory.create_host, id=world.host_id, name=name, cluster_id=self.cluster)
        self.beat(world)
        return world

    def beat(self, *worlds: World, **other: Any) -> None:
        for world in worlds or self.hosts:
            self.sequence += 1
            own = {"host_id": world.host_id, "boot_id": "b", "agent_id": world.host_id, "sequence": self.sequence}
            listed = [vm.facts() for vm in world.vms.values()]
            news = {
                **own,
                "clock": clock.iso(self.clock.now()),
                "problem": None,
                "facts": FACTS,
                "vms": listed,
                **other,
            }
            self._hear(hostagent.heartbeat.load(news))

    def _hear(self, news: Ask) -> None:
        self.scene.write(lambda session: hosts.hear_heartbeat(self.scene, session, news))

    def pass_time(self, seconds: float) -> None:
        """Beats arrive every 5 s meanwhile."""
        for _ in range(int(seconds / 5)):
            self.clock.advance(5)
            self.beat()

    def domain(self) -> Ask:
        ask = {"id": new_id(), "name": "d1", "data_center_id": self.center, "path": "/srv/d1"}
        return domains.create(self.scene, inventory.create_storage_domain.load_request(ask))

    def disk(self, domain_id: str, vm_id: str | None = None) -> Ask:
        ask = {"id": new_id(), "alias": "disk1", "domain_id": domain_id, "capacity": 512, "vm_id": vm_id}
        return disks.create(self.scene, inventory.create_disk.load_request(ask))

    def vm(self, name: str = "vm1") -> str:
        ask = {"id": new_id(), "name": name, "cluster_id": self.cluster, "memory": 2**26}
        return str(clones.create_vm(self.scene, inventory.create_vm.load_request(ask))["id"])

    def start(self, vm_id: str) -> Ask:
        return runs.start(self.scene, {"id": vm_id, "host_id": None})

    def show(self, sort: type[tables.Row], id_: str) -> Ask:
        with self.scene.database.read() as session:
            return store.show(session, store.get(session, sort, id_))

    def only(self, sort: type[tables.Row]) -> Ask:
        with self.scene.database.read() as session:
            page = store.page(session, sort, {"after": None, "limit": 10})
        assert page["total"] == 1
        shown: Ask = page["items"][0]
        return shown
