"""What happens by the clock, in virtual time (town.py)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from contracts import errors
from services.inventory import disks, domains, hosts, runs, store, tables, tidy, vms
from tests.unit.inventory.town import Town


def with_unknown_end(town: Town, work: Any, **how: set[str]) -> None:
    for name, promises in how.items():
        setattr(town.bus, name, promises)
    with pytest.raises(errors.NoAnswer):
        work()
    town.bus.lost, town.bus.away = set(), set()


def late(town: Town, do: Callable[[], Any], method: str) -> None:
    town.bus.late = {method}
    with pytest.raises(errors.Late):
        do()
    town.bus.late = set()


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


@pytest.mark.parametrize("how", ["lost", "away"])
def test_a_repeat_that_comes_too_late_leaves_open_what_the_first_ask_did(town: Town, how: str) -> None:
    domain, vm_id = town.domain(), town.vm()
    disk = town.disk(domain["id"], vm_id)
    with_unknown_end(town, lambda: town.start(vm_id), **{how: {"start_vm"}})
    late(town, lambda: town.start(vm_id), "start_vm")
    assert town.show(tables.Vm, vm_id)["state"] == "starting"
    town.pass_time(130)
    tidy.once(town.scene)
    if how == "lost":
        runs.power_off(town.scene, {"id": vm_id})
    disk = town.show(tables.Disk, disk["id"])
    ask = {"id": disk["id"], "version": disk["version"]}
    with_unknown_end(town, lambda: disks.delete(town.scene, ask), **{how: {"delete_disk"}})
    late(town, lambda: disks.delete(town.scene, ask), "delete_disk")
    assert town.show(tables.Disk, disk["id"])["state"] == "deleting"
    disks.delete(town.scene, ask)
    ask = {"id": domain["id"], "version": town.show(tables.StorageDomain, domain["id"])["version"]}
    with_unknown_end(town, lambda: domains.delete(town.scene, ask), **{how: {"delete_domain"}})
    late(town, lambda: domains.delete(town.scene, ask), "delete_domain")
    assert town.show(tables.StorageDomain, domain["id"])["state"] == "deleting"
    domains.delete(town.scene, ask)
    assert (town.storage.images, town.storage.domains) == ({}, {})


def test_a_first_ask_that_comes_too_late_was_not_carried_out(town: Town) -> None:
    domain = town.domain()
    ask = {"id": domain["id"], "version": domain["version"]}
    late(town, lambda: domains.delete(town.scene, ask), "delete_domain")
    assert town.show(tables.StorageDomain, domain["id"])["state"] == "active"


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
