"""What a person sees of jobs and does to them while they go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from contracts import errors, inventory, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.process import Process
from tests.fakes.site import Site

Start = Callable[..., Process]


def _at_commit(site: Site, removal: dict[str, Any]) -> dict[str, Any]:
    """The first merge of a removal once its copy runs."""

    def look() -> dict[str, Any] | None:
        merge: dict[str, Any] = site.merges(removal["id"])[0]
        return merge if merge["step"] == "commit" and merge["progress"]["end"] == 64 * MIB else None

    found: dict[str, Any] = site.until(look, "the copy")
    return found


@pytest.mark.usefixtures("running")
def test_progress_is_told_with_sums_and_ends_with_numbers(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    jobs, finished = site.bus.expect(snapshots.job_changed), site.bus.expect(snapshots.merge_finished)
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    site.until(lambda: site.job(removal["id"])["progress"]["end"] == 128 * MIB, "both copies")
    host.world.job_rate = 8 * MIB
    done = site.end_of(removal)
    assert done["progress"] == {"cur": 128 * MIB, "end": 128 * MIB, "rate": 0, "behind": False, "offline": False}
    assert done["result"]["bytes_merged"] == 128 * MIB
    assert [item["state"] for item in done["result"]["items"]] == ["done", "done"]
    merges = finished.wait(2)
    assert {merge["stall"]["mark_ms"] for merge in merges} == {5.0}
    jobs.until(lambda news: any(job["id"] == removal["id"] and job["state"] == "done" for job in news))


@pytest.mark.usefixtures("running")
def test_a_merge_of_nothing_ends_too(site: Site, host: FakeAgent) -> None:
    host.world.job_bytes = 0
    vm = site.vm(host)
    snapshot = site.taken(vm)
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


@pytest.mark.usefixtures("running")
def test_a_cancelled_removal_leaves_chain_and_snapshot(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    _at_commit(site, removal)
    assert site.job(removal["id"])["cancellable"]
    site.call(snapshots.cancel_job, id=removal["id"])
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "cancelled")
    left = site.call(snapshots.get_snapshot, id=snapshot)
    assert (left["state"], left["restorable"], left["partly_removed"]) == ("ok", False, False)
    assert site.agrees(host, vm)
    host.world.job_rate = 64 * MIB
    assert site.end_of(site.remove(snapshot))["state"] == "done"


@pytest.mark.usefixtures("running")
def test_one_disk_that_fails_does_not_drag_the_other_down(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    merge = _at_commit(site, removal)
    site.call(snapshots.cancel_job, id=merge["id"])
    site.end_of({"id": merge["id"], "kind": "merge"}, "undone")
    host.world.job_rate = 64 * MIB
    ended = site.end_of(removal)
    assert ended["state"] == "undone"
    assert sorted(item["state"] for item in ended["result"]["items"]) == ["done", "undone"]
    left = site.call(snapshots.get_snapshot, id=snapshot)
    assert [disk["disk_id"] for disk in left["disks"]] == [merge["disk_id"]]
    assert (left["partly_removed"], left["restorable"]) == (True, False)
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


def test_merges_wait_for_a_place_and_can_be_cancelled_there(site: Site, host: FakeAgent, start: Start) -> None:
    start(merges_per_host=1)
    vm = site.vm(host, disks=3)
    snapshot = site.taken(vm)
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    waiting = site.until(
        lambda: [merge for merge in site.merges(removal["id"]) if merge["step"] == "waiting"], "one runs"
    )
    assert len(waiting) == 2
    site.call(snapshots.cancel_job, id=waiting[0]["id"])
    assert site.job(waiting[0]["id"])["state"] == "undone"
    host.world.job_rate = 64 * MIB
    ended = site.end_of(removal)
    assert sorted(item["state"] for item in ended["result"]["items"]) == ["done", "done", "undone"]
    assert len(host.asked("start_commit")) == 2


@pytest.mark.usefixtures("running")
def test_the_bandwidth_is_limited_while_it_runs_and_from_the_start(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.world.job_rate = 0
    removal = site.remove(snapshot, bandwidth=5 * MIB)
    _at_commit(site, removal)
    assert host.asked("start_commit")[0]["bandwidth"] == 5 * MIB
    site.call(snapshots.limit_job, id=removal["id"], bandwidth=7 * MIB)
    assert host.asked("set_bandwidth")[0]["bandwidth"] == 7 * MIB
    host.world.job_rate = 64 * MIB
    site.end_of(removal)
    with pytest.raises(errors.TooLate):
        site.call(snapshots.limit_job, id=removal["id"], bandwidth=1)
    with pytest.raises(errors.TooLate):
        site.call(snapshots.cancel_job, id=removal["id"])
    with pytest.raises(errors.FlowWrongState):
        site.call(snapshots.resume_job, id=removal["id"])


@pytest.mark.usefixtures("running")
def test_jobs_are_listed_newest_first_in_pages(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    taken = [site.taken(vm) for _ in range(3)]
    first = site.call(snapshots.list_jobs, vm_id=vm, limit=2)
    assert [job["snapshot_id"] for job in first["items"]] == [taken[2], taken[1]]
    assert first["total"] == 3
    rest = site.call(snapshots.list_jobs, vm_id=vm, limit=2, after=first["next"])
    assert ([job["snapshot_id"] for job in rest["items"]], rest["next"]) == ([taken[0]], None)
    listed = site.call(snapshots.list_snapshots, vm_id=vm, limit=2)
    assert [one["id"] for one in listed["items"]] == taken[:2]


@pytest.mark.usefixtures("running")
def test_the_chain_is_shown_with_what_the_host_sees(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    fresh = site.call(snapshots.get_chain, disk_id=disk)
    assert [row["volume_id"] for row in fresh["volumes"]] == [site.disks[disk]["first_volume_id"]]
    snapshot = site.taken(vm, description="one")
    seen = site.call(snapshots.get_chain, disk_id=disk)
    assert [row["snapshot_id"] for row in seen["volumes"]] == [snapshot, None]
    assert seen["volumes"][0]["actual_size"] == 100 * MIB
    assert seen["facts"]["storage"]["leaf"] == seen["volumes"][1]["volume_id"]
    site.vms[vm]["host_id"] = None
    site.vms[vm]["state"] = "unknown"
    assert site.call(snapshots.get_chain, disk_id=disk)["facts"] is None


@pytest.mark.usefixtures("running")
def test_what_inventory_deletes_is_forgotten(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    kept, dropped = site.disk_ids(vm)
    gone = site.bus.expect(snapshots.snapshot_deleted)
    site.bus.tell(inventory.disk_changed, site.disks[kept] | {"alias": "renamed", "version": 2})
    site.bus.tell(inventory.disk_deleted, {"id": dropped})

    def aliases() -> list[str]:
        return [disk["alias"] for disk in site.call(snapshots.get_snapshot, id=snapshot)["disks"]]

    site.until(lambda: aliases() == ["renamed"], "the disk is forgotten")
    site.bus.tell(inventory.vm_deleted, {"id": vm})
    gone.until(lambda news: [one["id"] for one in news] == [snapshot])


@pytest.mark.usefixtures("running")
def test_news_of_unknown_disks_are_digested(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    host._tell_job(vm, site.disk_ids(vm)[0], "running", 1, 2)
    host.tell_vm(vm)
    assert site.taken(vm)


@pytest.mark.usefixtures("running")
def test_a_snapshot_of_a_vm_that_is_down(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host, disks=2, running=False)
    chosen = site.disk_ids(vm)[0]
    snapshot = site.taken(vm, disk_ids=[chosen], description="off")
    told = site.call(snapshots.get_snapshot, id=snapshot)
    assert ([disk["disk_id"] for disk in told["disks"]], told["live"]) == ([chosen], False)
    site.start(host, vm)
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


def test_a_copy_that_falls_behind_its_guest_says_so_until_it_catches_up(
    site: Site, host: FakeAgent, start: Start
) -> None:
    start(behind_seconds=1.0)
    vm = site.vm(host)
    snapshot = site.taken(vm)
    told = site.bus.expect(snapshots.merge_behind)
    host.world.job_rate, host.world.guest_rate = MIB, 2 * MIB
    removal = site.remove(snapshot)
    site.until(lambda: site.job(removal["id"])["progress"]["behind"], "the removal to be behind", 60)
    merge = site.merges(removal["id"])[0]
    assert (merge["progress"]["behind"], merge["state"], merge["step"]) == (True, "running", "commit")
    assert [news["id"] for news in told.wait(1, 60)] == [merge["id"]]
    host.world.guest_rate = 0
    site.until(lambda: not site.job(removal["id"])["progress"]["behind"], "the removal to catch up", 60)
    host.world.job_rate = 64 * MIB
    assert site.end_of(removal)["state"] == "done"
    assert site.merges(removal["id"])[0]["progress"]["behind"] is False
    assert site.agrees(host, vm)
