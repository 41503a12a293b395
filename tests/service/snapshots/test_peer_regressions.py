"""What hurt users of other systems, by number, where the flow of the service decides. docs/peers.md lists all."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import errors, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.site import Site, new

pytestmark = pytest.mark.usefixtures("running")

FAST = 64 * MIB


def _internal(site: Site, host: FakeAgent, disks: int = 1) -> tuple[str, str]:
    """A VM, and a snapshot whose removal is an internal merge."""
    vm = site.vm(host, disks=disks)
    snapshot = site.taken(vm)
    site.taken(vm)
    return vm, snapshot


def _copying(site: Site, host: FakeAgent, snapshot: str, merges: int = 1) -> dict[str, Any]:
    """A removal whose copies have begun and stand still."""
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    site.until(lambda: len(host.asked("start_commit")) == merges, "the copy")
    return removal


def test_peer_01_a_merge_without_room_marks_nothing_and_works_once_there_is_room(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    disk = site.disk_ids(vm)[0]
    removal = _copying(site, host, snapshot)
    site.until(lambda: site.merges(removal["id"])[0]["progress"]["end"] == FAST, "the copy's size")
    domain = host.world.storage.domains[site.domain["id"]]
    free, domain.free = domain.free, 1000 * MIB
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "no_space")
    assert {volume.legality for volume in site.volumes(disk).values()} == {"legal"}
    domain.free, host.world.job_rate = free, FAST
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


def test_peer_02_merges_of_one_domain_are_counted_together(site: Site, host: FakeAgent) -> None:
    """Two merges that fit one by one, but not both, do not start both."""
    first, second = (site.vm(host) for _ in range(2))
    taken = [site.taken(vm) for vm in (first, second)]
    for vm in (first, second):
        for volume in site.volumes(site.disk_ids(vm)[0]).values():
            volume.actual_size = 100 * MIB
    host.world.storage.domains[site.domain["id"]].free = 1024 * MIB + 150 * MIB
    running = _copying(site, host, taken[0])
    with pytest.raises(errors.NoSpace) as caught:
        site.remove(taken[1])
    assert caught.value.fields["needs"] > caught.value.fields["has"]
    host.world.job_rate = FAST
    assert site.end_of(running)["state"] == "done"
    assert site.end_of(site.remove(taken[1]))["state"] == "done"


def test_peer_03_a_leaf_that_the_database_does_not_know_is_named_and_left_alone(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    disk, stranger = site.disk_ids(vm)[0], new()
    host.world.vms[vm].chains[disk].insert(0, stranger)
    for ask in (lambda: site.remove(snapshot), lambda: site.take(vm)):
        with pytest.raises(errors.ChainDiffers, match=stranger):
            ask()
    assert not host.asked("start_commit")
    host.world.vms[vm].chains[disk].remove(stranger)
    assert site.end_of(site.remove(snapshot))["state"] == "done"


def test_peer_04_a_volume_that_was_merged_while_nobody_watched_leaves_the_database(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _copying(site, host, snapshot)
    assert site.process is not None
    site.process.kill()
    host.world.job_rate = FAST
    site.until(lambda: not host.world.vms[vm].jobs, "the copy's end")
    site.restart()
    assert site.end_of(removal)["state"] == "done"
    assert len(host.asked("start_commit")) == 2, "to begin, and to record the end"
    with pytest.raises(errors.NotFound):
        site.call(snapshots.get_snapshot, id=snapshot)
    assert site.agrees(host, vm)


def test_peer_06_a_restart_in_a_removal_does_not_lock_it_out(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _copying(site, host, snapshot)
    for _ in range(2):
        site.restart()
    host.world.job_rate = FAST
    assert site.end_of(removal)["state"] == "done"
    assert site.call(snapshots.check_idle, id=vm) == {}
    site.taken(vm)
    assert site.agrees(host, vm)


def test_peer_08_a_copy_of_any_length_is_followed_and_nothing_of_it_deleted(site: Site, host: FakeAgent) -> None:
    """Looks that time out decide nothing: the job goes on, and its volumes stay."""
    vm, snapshot = _internal(site, host)
    before = set(site.volumes(site.disk_ids(vm)[0]))
    removal = _copying(site, host, snapshot)
    host.fail("look_disk", errors.StorageTimeout(path="/mnt", seconds=5), times=4)
    site.until(lambda: not host._fates.get("look_disk"), "the looks that failed")
    assert site.job(removal["id"])["state"] == "running"
    assert set(site.volumes(site.disk_ids(vm)[0])) == before
    host.world.job_rate = FAST
    assert site.end_of(removal)["state"] == "done"
    assert len(host.asked("start_commit")) == 2, "to begin, and to record the end"
    assert site.agrees(host, vm)


def test_peer_09_the_disk_that_was_merged_is_merged_although_the_other_failed(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host, disks=2)
    removal = _copying(site, host, snapshot, merges=2)
    first, second = site.disk_ids(vm)
    host.world.vms[vm].jobs.pop(second)
    host.world.job_rate = FAST
    ended = site.end_of(removal)
    assert {item["disk_id"]: item["state"] for item in ended["result"]["items"]} == {first: "done", second: "undone"}
    assert (len(site.chain(first)), len(site.chain(second))) == (2, 3)
    left = site.call(snapshots.get_snapshot, id=snapshot)
    assert ([disk["disk_id"] for disk in left["disks"]], left["partly_removed"]) == ([second], True)
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


def test_peer_10_a_removal_that_is_stuck_keeps_nobody_else_and_goes_on_when_asked(site: Site, host: FakeAgent) -> None:
    vm, other = site.vm(host), site.vm(host)
    snapshot = site.taken(vm)
    host.fail("discard_volume", errors.VolumeInUse(volume_id=new(), by="a backup"), times=8)
    removal = site.remove(snapshot)
    stuck = site.end_of(removal, "stuck")
    assert f"drystone job resume {site.merges(removal['id'])[0]['id']}" in stuck["action"]
    assert site.end_of(site.remove(site.taken(other)))["state"] == "done"
    site.stop(host, vm)
    site.start(host, vm)
    site.call(snapshots.resume_job, id=removal["id"])
    assert site.end_of(removal)["state"] == "done"
    site.taken(vm)


def test_peer_12_a_second_removal_is_told_of_the_first_and_works_after_it(site: Site, host: FakeAgent) -> None:
    vm, older = _internal(site, host)
    newer = site.call(snapshots.list_snapshots, vm_id=vm)["items"][1]["id"]
    first = _copying(site, host, older)
    with pytest.raises(errors.DiskBusy) as caught:
        site.remove(newer)
    assert caught.value.fields["flow_id"] == first["id"]
    assert len(host.world.vms[vm].jobs) == 1
    host.world.job_rate = FAST
    assert site.end_of(first)["state"] == "done"
    assert site.end_of(site.remove(newer))["state"] == "done"
    assert site.agrees(host, vm)


def test_peer_13_a_removal_that_does_not_end_can_be_given_up_and_asked_for_again(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _copying(site, host, snapshot)
    site.call(snapshots.cancel_job, id=removal["id"])
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "cancelled")
    assert site.call(snapshots.get_snapshot, id=snapshot)["state"] == "ok"
    host.world.job_rate = FAST
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


def test_peer_15_a_job_that_just_began_is_not_over(site: Site, host: FakeAgent) -> None:
    """Statistics from before the copy had a size (cur == end == 0) end nothing."""
    vm = site.vm(host)
    snapshot = site.taken(vm)
    look = host.world.look_disk
    looked: list[Any] = []

    def stale(ask: dict[str, Any]) -> dict[str, Any]:
        facts = look(ask)
        job = facts["qemu"]["job"]
        if job and len(looked) < 3:
            looked.append(job)
            job |= {"cur": 0, "end": 0, "ready": False, "status": "running"}
            facts["libvirt"] |= {"mirror_ready": False}
        return facts

    host.world.look_disk = stale  # type: ignore[method-assign, assignment]
    host.world.job_rate = FAST
    removal = site.remove(snapshot)
    site.until(lambda: looked, "a look at stale statistics")
    assert not host.asked("pivot") or len(looked) == 3
    assert site.end_of(removal)["state"] == "done"
    assert len(looked) == 3
    assert site.agrees(host, vm)


def test_peer_15_a_pivot_that_fails_for_good_leaves_a_legal_leaf(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("pivot", errors.PivotFailed(disk_id=new(), tries=1, reason="no"), times=9)
    ended = site.end_of(site.remove(snapshot))
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "pivot_failed")
    assert len(host.asked("pivot")) == 3, "it is not tried for ever"
    assert {volume.legality for volume in site.volumes(site.disk_ids(vm)[0]).values()} == {"legal"}
    assert site.agrees(host, vm)


def test_peer_15_a_disk_that_was_unplugged_is_refused_and_stays_legal(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    unplugged = site.disk_ids(vm)[1]
    site.disks[unplugged] |= {"vm_id": None}
    site.vms[vm]["disks"] = site.vms[vm]["disks"][:1]
    host.world.vms[vm].chains.pop(unplugged)
    with pytest.raises(errors.Problem) as caught:
        site.remove(snapshot)
    assert unplugged in str(caught.value)
    assert {volume.legality for volume in site.volumes(unplugged).values()} == {"legal"}
    assert not host.asked("start_commit")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0)])
def test_peer_15_several_snapshots_of_a_disk_may_be_named_in_any_order(
    site: Site, host: FakeAgent, order: tuple[int, ...]
) -> None:
    """Which merge comes first is the plan's to decide; what stays is the same, and reads the same."""
    vm = site.vm(host)
    taken = [site.taken(vm) for _ in range(4)]
    removal = site.remove_many([taken[number] for number in order])
    assert site.end_of(removal)["state"] == "done"
    left = [one for number, one in enumerate(taken) if number not in order]
    assert sorted(row["id"] for row in site.call(snapshots.list_snapshots, vm_id=vm)["items"]) == sorted(left)
    assert len(site.volumes(site.disk_ids(vm)[0])) == 1 + len(left)
    assert site.agrees(host, vm)


def test_peer_16_a_copy_that_is_through_is_not_ready_before_libvirt_says_so(site: Site, host: FakeAgent) -> None:
    """cur == end without a ready mirror is no reason to pivot."""
    vm = site.vm(host)
    snapshot = site.taken(vm)
    look = host.world.look_disk
    looked: list[Any] = []

    def late(ask: dict[str, Any]) -> dict[str, Any]:
        facts = look(ask)
        job = facts["qemu"]["job"]
        if job and job["cur"] == job["end"] and len(looked) < 4:
            assert not host.asked("pivot")
            looked.append(job)
            facts["libvirt"] |= {"mirror_ready": False}
        return facts

    host.world.look_disk = late  # type: ignore[method-assign, assignment]
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert len(looked) == 4
    assert len(host.asked("pivot")) == 1


def test_peer_16_libvirts_xml_that_changes_late_after_a_pivot_is_waited_for(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    top = host.world.vms[vm].chains[site.disk_ids(vm)[0]][0]
    look = host.world.look_disk
    looked: list[Any] = []

    def late(ask: dict[str, Any]) -> dict[str, Any]:
        facts = look(ask)
        if host.asked("pivot") and len(looked) < 3:
            looked.append(facts)
            assert not host.asked("record_merge")
            assert not host.asked("discard_volume")
            facts["libvirt"] |= {"chain": [top, *facts["libvirt"]["chain"]]}
            facts["unsure"] = "QEMU and libvirt differ"
        return facts

    host.world.look_disk = late  # type: ignore[method-assign, assignment]
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert len(looked) == 3
    assert site.agrees(host, vm)
