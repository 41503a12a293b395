"""What happens by the clock, in virtual time: the flows on SQLite, agents as worlds in memory, no bus."""

from __future__ import annotations

import datetime as dt
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from chassis import clock, logs, migrate
from chassis.database import Database
from contracts import errors, hostagent, inventory
from contracts.promise import Rpc
from services.inventory import centers, disks, domains, hosts, runs, store, tables, tidy, vms
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
    """Carries calls to worlds without a bus. `lost`: promises whose answers are lost; `away`: never carried out."""

    def __init__(self) -> None:
        self.worlds: dict[str, World] = {}
        self.lost: set[str] = set()
        self.away: set[str] = set()
        self.calls: list[str] = []

    def call(self, promise: Rpc, request: Ask, *, at: str | None = None, deadline: float | None = None) -> Ask:
        self.calls.append(promise.method)
        if promise.service != hostagent.OWNER:
            return {}
        no_answer = errors.NoAnswer(service=at, method=promise.method, seconds=promise.deadline)
        if promise.method in self.away:
            raise no_answer
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

    def vm(self) -> str:
        ask = {"id": new_id(), "name": "vm1", "cluster_id": self.cluster, "memory": 2**26}
        return str(self.write(vms.create, inventory.create_vm, **ask)["id"])

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


@pytest.fixture
def town(tmp_path: pathlib.Path) -> Iterator[Town]:
    made = Town(tmp_path)
    yield made
    made.scene.database.close()


def with_unknown_end(town: Town, work: Any, **how: set[str]) -> None:
    for name, promises in how.items():
        setattr(town.bus, name, promises)
    with pytest.raises(errors.NoAnswer):
        work()
    town.bus.lost, town.bus.away = set(), set()


@pytest.mark.parametrize("how", ["lost", "away"])
def test_what_was_begun_is_finished_by_the_clock(town: Town, how: str) -> None:
    with_unknown_end(town, town.domain, **{how: {"create_domain"}})
    tidy.once(town.scene)  # its request may still be under way
    assert town.only(tables.StorageDomain)["state"] == "creating"
    town.pass_time(40)
    tidy.once(town.scene)
    domain = town.only(tables.StorageDomain)
    assert (domain["state"], domain["problem"]) == ("active", None)
    with_unknown_end(town, lambda: town.disk(domain["id"]), **{how: {"create_volume"}})
    town.pass_time(70)
    tidy.once(town.scene)
    assert town.only(tables.Disk)["state"] == "ok"


@pytest.mark.parametrize("how", ["lost", "away"])
def test_deletions_are_finished_by_the_clock(town: Town, how: str) -> None:
    domain = town.domain()
    disk = town.disk(domain["id"])
    ask = {"id": disk["id"], "version": disk["version"]}
    with_unknown_end(town, lambda: disks.delete(town.scene, ask), **{how: {"delete_disk"}})
    town.pass_time(130)
    tidy.once(town.scene)
    assert town.storage.images == {}
    version = town.only(tables.StorageDomain)["version"]
    ask = {"id": domain["id"], "version": version}
    with_unknown_end(town, lambda: domains.delete(town.scene, ask), **{how: {"delete_domain"}})
    town.pass_time(40)
    tidy.once(town.scene)
    with pytest.raises(errors.NotFound):
        town.show(tables.StorageDomain, domain["id"])


def test_a_vms_deletion_is_finished_by_the_clock_as_a_whole(town: Town) -> None:
    domain, vm_id = town.domain(), town.vm()
    for _ in range(2):
        town.disk(domain["id"], vm_id)
    ask = {"id": vm_id, "version": town.show(tables.Vm, vm_id)["version"]}
    with_unknown_end(town, lambda: vms.delete(town.scene, ask), lost={"delete_disk"})
    assert town.show(tables.Vm, vm_id)["state"] == "deleting"
    with pytest.raises(errors.VmWrongState):
        town.start(vm_id)
    town.pass_time(130)
    tidy.once(town.scene)
    assert town.storage.images == {}
    with pytest.raises(errors.NotFound):
        town.show(tables.Vm, vm_id)


def test_what_cannot_be_finished_stays_and_is_tried_again(town: Town) -> None:
    with_unknown_end(town, town.domain, away={"create_domain"})
    for world in town.hosts:
        town.clock.advance(40)
        town.beat(world, problem="libvirt is away")
    tidy.once(town.scene)
    assert town.only(tables.StorageDomain)["state"] == "creating"
    town.pass_time(40)
    tidy.once(town.scene)
    assert town.only(tables.StorageDomain)["state"] == "active"


def test_a_start_that_was_never_carried_out_ends_down_but_not_soon(town: Town) -> None:
    vm_id = town.vm()
    with_unknown_end(town, lambda: town.start(vm_id), away={"start_vm"})
    town.pass_time(85)
    assert town.show(tables.Vm, vm_id)["state"] == "starting"
    town.pass_time(15)
    assert town.show(tables.Vm, vm_id)["state"] == "down"


def test_a_start_whose_answer_was_lost_is_looked_at(town: Town) -> None:
    vm_id = town.vm()
    with_unknown_end(town, lambda: town.start(vm_id), lost={"start_vm"})
    assert town.show(tables.Vm, vm_id)["reason"].startswith("not settled yet")
    town.clock.advance(1)
    tidy.once(town.scene)
    assert town.show(tables.Vm, vm_id)["state"] == "running"
    assert town.bus.calls.count("start_vm") == 1


def test_a_host_that_misses_its_beats_is_silent_and_its_vms_unknown(town: Town) -> None:
    vm_id = town.vm()
    host_id = town.start(vm_id)["host_id"]
    town.clock.advance(14)
    town.scene.write(lambda session: hosts.note_silence(town.scene, session))
    assert town.show(tables.Host, host_id)["state"] == "up"
    town.clock.advance(2)
    town.scene.write(lambda session: hosts.note_silence(town.scene, session))
    assert town.show(tables.Host, host_id)["state"] == "non_responsive"
    assert town.show(tables.Vm, vm_id)["state"] == "unknown"
    town.beat()
    assert town.show(tables.Vm, vm_id)["state"] == "running"


def test_sizes_are_told_only_when_they_changed_notably(town: Town) -> None:
    domain = town.domain()
    stored = town.storage.domains[domain["id"]]
    for free, told in ((stored.free - stored.total // 200, False), (stored.free // 2, True)):
        before = town.only(tables.StorageDomain)["version"]
        stored.free = free
        town.pass_time(60)
        tidy.once(town.scene)
        assert (town.only(tables.StorageDomain)["version"] > before) is told


def test_a_domain_that_cannot_be_looked_at_says_why_and_recovers(town: Town) -> None:
    domain = town.domain()
    town.storage.unusable.add(domain["path"])
    town.pass_time(65)
    tidy.once(town.scene)
    assert "not a usable storage domain" in town.only(tables.StorageDomain)["problem"]
    town.storage.unusable.clear()
    town.pass_time(65)
    tidy.once(town.scene)
    assert town.only(tables.StorageDomain)["problem"] is None


def test_deletions_are_forgotten_when_no_message_can_come_back(town: Town) -> None:
    vm_id = town.vm()
    vms.delete(town.scene, {"id": vm_id, "version": 1})

    def remembered() -> bool:
        with town.scene.database.read() as session:
            return store.was_deleted(session, tables.Vm, vm_id)

    deleted_at = dt.datetime.now(dt.UTC)
    for later, kept in ((dt.timedelta(days=-1), True), (dt.timedelta(days=1), False)):
        with town.scene.database.write() as session:
            store.forget_gone(session, deleted_at + later)
        assert remembered() is kept
