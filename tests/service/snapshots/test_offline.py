"""Removals of snapshots of VMs that are down, that stop, or that start meanwhile."""

from __future__ import annotations

import pytest

from contracts import errors, snapshots
from tests.fakes import agent_offline
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.process import Process
from tests.fakes.site import Facts, Site

pytestmark = pytest.mark.usefixtures("running")


def _down(site: Site, host: FakeAgent, count: int = 2) -> tuple[str, list[str]]:
    vm = site.vm(host)
    taken = [site.taken(vm) for _ in range(count)]
    site.stop(host, vm)
    return vm, taken


def test_each_snapshot_of_a_vm_that_is_down_can_go(site: Site, host: FakeAgent) -> None:
    """Internal, then leaf."""
    vm, taken = _down(site, host)
    for volume in site.volumes(site.disk_ids(vm)[0]).values():
        volume.actual_size = 3 * MIB
    for snapshot in taken:
        job = site.end_of(site.remove(snapshot, bandwidth=5 * MIB))
        assert job["state"] == "done", job
        (merge,) = site.merges(job["id"])
        assert merge["bytes_merged"] == job["result"]["bytes_merged"] >= 3 * MIB
        assert site.agrees(host, vm)
    asks = host.asked("merge_offline")
    assert {ask["lease"]["domain"]["id"] for ask in asks} == {site.domain["id"]}
    assert {ask["bandwidth"] for ask in asks} == {5 * MIB}
    assert not host.asked("start_commit")
    site.start(host, vm)


def test_neighbours_go_in_one_job(site: Site, host: FakeAgent) -> None:
    vm, taken = _down(site, host, 3)
    assert site.end_of(site.remove_many(taken))["state"] == "done"
    assert len(host.asked("merge_offline")) == 1
    assert site.agrees(host, vm)


def test_a_cancel_ends_the_copy(site: Site, host: FakeAgent) -> None:
    vm, taken = _down(site, host)
    host.world.job_rate = 0
    removal = site.remove(taken[0])
    site.until(lambda: host.world.offline, "the copy")
    site.until(lambda: site.job(removal["id"])["progress"]["offline"], "its progress to say so")
    site.call(snapshots.cancel_job, id=removal["id"])
    ended = site.end_of(removal)
    assert (ended["state"], ended["progress"]["offline"]) == ("undone", False)
    assert not host.world.offline
    assert site.agrees(host, vm)


def test_a_vm_that_starts_before_the_copy_is_merged_live(site: Site, host: FakeAgent) -> None:
    vm, taken = _down(site, host)
    host.world.storage.leases[vm] = 7  # somebody starts it, on another host perhaps
    removal = site.remove(taken[0])
    site.until(lambda: host.asked("merge_offline"), "an ask")
    host.world.storage.leases[vm] = None
    site.start(host, vm)
    assert site.end_of(removal)["state"] == "done"
    assert host.asked("start_commit")
    assert site.agrees(host, vm)


def test_a_vm_that_stops_before_its_pivot_is_merged_offline(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("pivot", errors.HypervisorAway(host_id=host.host_id, reason="away"), times=99)
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("pivot"), "the ask for the pivot")
    site.stop(host, vm)
    assert site.end_of(removal)["state"] == "done"
    assert host.asked("merge_offline")
    assert site.agrees(host, vm)


def test_a_copy_that_failed_turns_the_merge_back(site: Site, host: FakeAgent) -> None:
    vm, taken = _down(site, host)
    host.fail("merge_offline", errors.JobFailed(disk_id=site.disk_ids(vm)[0], reason="qemu-img: no"), times=99)
    ended = site.end_of(site.remove(taken[0]))
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "job_failed")
    assert site.agrees(host, vm)


@pytest.mark.parametrize("point", ["commit.before_ask", "commit.after_ask", "commit.after_settled"])
def test_a_service_that_dies_goes_on(site: Site, host: FakeAgent, running: Process, point: str) -> None:
    vm, taken = _down(site, host)
    site.restart(crash=f"merge.{point}")
    removal = site.remove(taken[0])
    assert site.process is not None
    site.until(lambda: not site.process.alive(), "the crash")
    site.restart()
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)


def _copying(site: Site, host: FakeAgent, snapshot: str) -> Facts:
    """A removal whose live copy has begun and does not get on."""
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("start_commit"), "the copy")
    return removal


def test_a_merge_whose_vm_stops_goes_on_offline(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    site.taken(vm)
    removal = _copying(site, host, snapshot)
    host.world.job_rate = 16 * MIB
    site.stop(host, vm)
    assert site.end_of(removal)["state"] == "done"
    assert host.asked("merge_offline")
    assert site.agrees(host, vm)


def test_without_a_lease_a_vm_that_stops_while_it_copies_undoes_the_merge(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    site.taken(vm)
    site.leases = False
    removal = _copying(site, host, snapshot)
    site.stop(host, vm)
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "no_lease")
    assert site.call(snapshots.get_snapshot, id=snapshot)["restorable"] is False
    assert site.agrees(host, vm)


def test_a_start_that_was_refused_goes_first(site: Site, host: FakeAgent) -> None:
    vm, taken = _down(site, host)
    site.start_first = 20.0
    removal = site.remove(taken[0])
    site.until(lambda: site.merges(removal["id"])[0]["step"] == "commit", "its turn")
    site.start(host, vm)
    assert site.end_of(removal)["state"] == "done"
    assert not host.asked("merge_offline")
    assert host.asked("start_commit")


def test_the_disks_of_a_vm_follow_each_other(site: Site, host: FakeAgent) -> None:
    """They are written under the one lease."""
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    site.stop(host, vm)
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)
    assert len(host.asked("merge_offline")) < 10


def test_a_copy_in_place_of_the_pivot_can_be_cancelled(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("pivot", errors.HypervisorAway(host_id=host.host_id, reason="away"), times=99)
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("pivot"), "the ask for the pivot")
    host.world.job_rate = 0
    site.stop(host, vm)
    site.until(lambda: host.world.offline, "the copy")
    site.call(snapshots.cancel_job, id=removal["id"])
    assert site.end_of(removal)["state"] == "undone"
    assert not host.world.offline
    assert site.agrees(host, vm)


def test_another_limit_is_for_the_copy_in_hand_and_the_next_one(site: Site, host: FakeAgent) -> None:
    vm, taken = _down(site, host)
    host.world.job_rate = 0
    removal = site.remove(taken[0])
    site.until(lambda: host.world.offline, "the copy")
    site.call(snapshots.limit_job, id=removal["id"], bandwidth=5 * MIB)
    assert [job.speed for job in host.world.offline.values()] == [5 * MIB]
    host.world.job_rate = 16 * MIB
    site.start_first = 20.0
    with host.world.storage.lock:
        agent_offline.end(host.world, site.disk_ids(vm)[0], "failed")
    site.start(host, vm)
    site.until(lambda: host.asked("start_commit"), "the live copy")
    assert host.asked("start_commit")[0]["bandwidth"] == 5 * MIB
    assert site.end_of(removal)["state"] == "done"
