"""What goes wrong under a merge or a create, and how it ends: done, or undone with the chain intact."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from contracts import errors, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.site import Site, new

pytestmark = pytest.mark.usefixtures("running")


def _copying(site: Site, host: FakeAgent, snapshot: str) -> dict[str, Any]:
    """A removal whose (only) copy stands still."""
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    site.until(lambda: any(one["progress"]["end"] == 64 * MIB for one in site.merges(removal["id"])), "the copy")
    return removal


def _internal(site: Site, host: FakeAgent, disks: int = 1) -> tuple[str, str]:
    """A VM and a snapshot whose removal is an internal merge."""
    vm = site.vm(host, disks=disks)
    snapshot = site.taken(vm)
    site.taken(vm)
    return vm, snapshot


def _left_and_not_recorded(site: Site, host: FakeAgent, snapshot: str) -> dict[str, Any]:
    """A removal whose copy is done for QEMU, while the agent cannot record that."""
    removal = _copying(site, host, snapshot)
    host.fail("start_commit", errors.StorageTimeout(path="/mnt", seconds=5), times=99)
    host.world.job_rate = 64 * MIB
    site.until(lambda: len(host.asked("start_commit")) > 1, "the ask to record it")
    return removal


def test_a_merge_that_was_not_recorded_before_its_qemu_died_is_done_again_offline(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _left_and_not_recorded(site, host, snapshot)
    site.stop(host, vm)
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)


def test_without_a_lease_a_merge_that_was_not_recorded_before_its_qemu_died_is_undone(
    site: Site, host: FakeAgent
) -> None:
    vm, snapshot = _internal(site, host)
    site.leases = False
    removal = _left_and_not_recorded(site, host, snapshot)
    site.stop(host, vm)
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "no_lease")
    assert not host.asked("discard_volume")
    assert site.agrees(host, vm)
    site.start(host, vm)
    host._fates.clear()
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


def test_a_cancel_of_a_merge_that_qemu_has_done_records_it_and_goes_forward(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _left_and_not_recorded(site, host, snapshot)
    site.call(snapshots.cancel_job, id=removal["id"])
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)


def test_a_vm_that_stops_after_the_copy_lets_the_merge_end(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    host.fail("record_merge", errors.StorageTimeout(path="/mnt", seconds=5), times=2)
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("record_merge"), "the record")
    site.stop(host, vm)
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)


def test_a_vm_that_stops_after_the_pivot_lets_the_merge_end(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("record_merge", errors.StorageTimeout(path="/mnt", seconds=5), times=2)
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("record_merge"), "the record")
    site.stop(host, vm)
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)


def test_a_vm_that_was_started_elsewhere_is_found_there(site: Site, host: FakeAgent) -> None:
    other = site.host()
    vm, snapshot = _internal(site, host)
    host.fail("record_merge", errors.StorageTimeout(path="/mnt", seconds=5), times=2)
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("record_merge"), "the record")
    site.stop(host, vm)
    site.start(other, vm)
    assert site.end_of(removal)["state"] == "done"
    assert other.asked("look_disk")
    assert site.agrees(other, vm)


def test_a_job_that_vanishes_has_failed_and_is_not_repeated(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _copying(site, host, snapshot)
    host.world.vms[vm].jobs.clear()
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "job_failed")
    assert len(host.asked("start_commit")) == 1
    assert site.agrees(host, vm)
    host.world.job_rate = 64 * MIB
    assert site.end_of(site.remove(snapshot))["state"] == "done"


def _restorable(site: Site, snapshot: str) -> bool:
    return bool(site.call(snapshots.get_snapshot, id=snapshot)["restorable"])


def test_a_merge_refused_before_anything_was_copied_leaves_the_snapshot_restorable(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host, disks=2)
    host.fail("start_commit", errors.VolumeInUse(volume_id=new(), by="a foreign file"), times=2)
    ended = site.end_of(site.remove(snapshot))
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "volume_in_use")
    assert _restorable(site, snapshot)
    assert site.agrees(host, vm)


def test_one_merge_that_copied_takes_the_whole_snapshot_for_good(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host, disks=2)
    host.fail("start_commit", errors.VolumeInUse(volume_id=new(), by="a foreign file"))
    removal = _copying(site, host, snapshot)
    site.until(lambda: {merge["state"] for merge in site.merges(removal["id"])} == {"running", "undone"}, "one refused")
    site.call(snapshots.cancel_job, id=removal["id"])
    assert site.end_of(removal)["state"] == "undone"
    assert not _restorable(site, snapshot)
    host.fail("start_commit", errors.VolumeInUse(volume_id=new(), by="a foreign file"), times=2)
    assert site.end_of(site.remove(snapshot))["state"] == "undone"
    assert not _restorable(site, snapshot)
    assert site.agrees(host, vm)


def test_a_refusal_that_proves_nothing_leaves_the_snapshot_not_restorable(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    host.fail("start_commit", errors.HypervisorRefused(host_id=host.host_id, action="blockCommit", reason="no"))
    ended = site.end_of(site.remove(snapshot))
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "hypervisor_refused")
    assert not _restorable(site, snapshot)
    assert site.agrees(host, vm)


def test_a_refused_pivot_is_tried_again(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("pivot", errors.PivotFailed(disk_id=new(), tries=1, reason="no"), times=2)
    assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


def test_a_merge_whose_lease_cannot_be_relied_on_is_cancelled(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("pivot", errors.LeaseFailed(vm_id=new(), domain_id=new(), action="relied on for a pause", reason="no"))
    ended = site.end_of(site.remove(snapshot))
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "lease_failed")
    assert host.asked("cancel_job")
    assert site.agrees(host, vm)


def test_a_pivot_that_is_refused_for_good_cancels_the_merge(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("pivot", errors.PivotFailed(disk_id=new(), tries=1, reason="no"), times=9)
    ended = site.end_of(site.remove(snapshot))
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "pivot_failed")
    assert host.asked("cancel_job")
    assert len(host.asked("pivot")) == 3
    assert site.agrees(host, vm)


def test_a_volume_in_use_at_the_end_asks_for_a_person(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("discard_volume", errors.VolumeInUse(volume_id=new(), by="a backup"), times=8)
    removal = site.remove(snapshot)
    stuck = site.end_of(removal, "stuck")
    assert (stuck["reason"]["code"], "a backup" in stuck["reason"]["message"]) == ("volume_in_use", True)
    assert "drystone job resume" in stuck["action"]
    with pytest.raises(errors.TooLate):
        site.call(snapshots.cancel_job, id=removal["id"])
    site.call(snapshots.resume_job, id=removal["id"])
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)


def test_a_domain_that_fills_up_stops_the_copy_before_the_reserve(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _copying(site, host, snapshot)
    host.world.storage.domains[site.domain["id"]].free = 1000 * MIB
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "no_space")
    assert site.agrees(host, vm)


def test_nothing_is_done_while_qemu_and_libvirt_differ(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    removal = _copying(site, host, snapshot)
    host.world.vms[vm].reason = "libvirt does not know it"
    host.world.vms[vm].state = "unsure"
    host.world.job_rate = 64 * MIB
    site.until(lambda: "looks again" in site.process.log, "a look")  # type: ignore[union-attr]
    assert not host.asked("pivot")
    host.world.vms[vm].state = "running"
    assert site.end_of(removal)["state"] == "done"


def test_a_look_that_fails_decides_nothing(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _copying(site, host, snapshot)
    host.fail("look_disk", errors.StorageFailed(action="reading", path="/mnt", reason="an I/O error"), times=3)
    host.world.job_rate = 16 * MIB
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)


def test_a_silent_host_is_waited_for(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    removal = _copying(site, host, snapshot)
    host.stop()
    host.world.job_rate = 64 * MIB
    site.until(lambda: "unknown, looks again" in site.process.log, "a look", 40)  # type: ignore[union-attr]
    host.start()
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)


def test_a_cancel_after_the_pivot_is_too_late(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.fail("record_merge", errors.StorageTimeout(path="/mnt", seconds=5), times=3)
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("record_merge"), "the record")
    with pytest.raises(errors.TooLate):
        site.call(snapshots.cancel_job, id=removal["id"])
    assert not site.job(removal["id"])["cancellable"]
    assert site.end_of(removal)["state"] == "done"


def test_a_cancel_that_loses_the_race_goes_forward(site: Site, host: FakeAgent) -> None:
    vm, snapshot = _internal(site, host)
    removal = _copying(site, host, snapshot)
    host.fail("cancel_job", errors.StorageTimeout(path="/mnt", seconds=5), times=2)
    site.call(snapshots.cancel_job, id=removal["id"])
    site.until(lambda: host.asked("cancel_job"), "the cancel")
    host.world.job_rate = 64 * MIB
    ended = site.end_of(removal)
    assert ended["state"] == "done", ended
    assert site.agrees(host, vm)


# -- creating ---------------------------------------------------------------------------------------------


def test_a_refused_create_leaves_nothing(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    host.fail("switch_leaves", errors.QuiesceFailed(vm_id=vm, reason="no agent"), times=9)
    job = site.end_of(site.take(vm, quiesce="required"))
    assert (job["state"], job["reason"]["code"]) == ("undone", "quiesce_failed")
    with pytest.raises(errors.NotFound):
        site.call(snapshots.get_snapshot, id=job["snapshot_id"])
    assert site.agrees(host, vm)


def _half_made(site: Site, host: FakeAgent, vm: str, ask: dict[str, Any], *, used: bool) -> None:
    """The first ask to switch is refused, but has made the first disk's new volume; QEMU writes to it if `used`."""
    disk = sorted(site.disk_ids(vm))[0]
    volume = str(uuid.uuid5(uuid.UUID(ask["id"]), disk))
    made = {"disk": {"disk_id": disk, "domain": site.ref()}, "volume_id": volume, "capacity": 1024 * MIB}
    parent, look = site.disks[disk]["first_volume_id"], host.world.look_disk

    def look_after(request: dict[str, Any]) -> dict[str, Any]:
        if host.asked("switch_leaves") and volume not in site.volumes(disk) and not host.asked("discard_volume"):
            host.world.create_volume({**made, "parent_id": parent, "format": "cow"})
            if used:
                host.world.vms[vm].chains[disk].insert(0, volume)
        return look(request)

    host.fail("switch_leaves", errors.HypervisorRefused(host_id=host.host_id, action="it", reason="no"))
    host.world.look_disk = look_after  # type: ignore[method-assign, assignment]


def test_a_new_volume_that_qemu_does_not_use_is_taken_away(site: Site, host: FakeAgent) -> None:
    vm, ask = site.vm(host, disks=2), {"id": new(), "job_id": new()}
    _half_made(site, host, vm, ask, used=False)
    job = site.end_of(site.take(vm, **ask))
    assert (job["state"], job["reason"]["code"]) == ("undone", "hypervisor_refused")
    assert host.asked("discard_volume")
    assert site.agrees(host, vm)


def test_an_ask_that_comes_after_its_create_was_undone_is_refused(site: Site, host: FakeAgent) -> None:
    """Every disk is fenced before anything is dropped."""
    vm, ask = site.vm(host, disks=2), {"id": new(), "job_id": new()}
    _half_made(site, host, vm, ask, used=False)
    assert site.end_of(site.take(vm, **ask))["state"] == "undone"
    order = [name for name, _ in host.requests if name in ("switch_leaves", "cancel_job", "discard_volume")]
    assert order == ["switch_leaves", "cancel_job", "cancel_job", "discard_volume"]
    assert all(one["top_id"] is None for one in host.asked("cancel_job"))
    with pytest.raises(errors.StaleClaim):
        host.world.switch_leaves(host.asked("switch_leaves")[0])
    assert site.agrees(host, vm)


def test_a_create_is_not_taken_back_while_a_call_of_it_hangs(site: Site, host: FakeAgent) -> None:
    vm, ask = site.vm(host, disks=2), {"id": new(), "job_id": new()}
    _half_made(site, host, vm, ask, used=False)
    host.fail("cancel_job", errors.HypervisorAway(host_id=host.host_id, reason="a call hangs"), times=3)
    job = site.end_of(site.take(vm, **ask))
    assert (job["state"], len(host.asked("cancel_job"))) == ("undone", 5)
    names = [name for name, _ in host.requests]
    assert names.index("discard_volume") > [at for at, name in enumerate(names) if name == "cancel_job"][-1]
    assert site.agrees(host, vm)


def test_a_create_that_happened_half_goes_forward(site: Site, host: FakeAgent) -> None:
    vm, ask = site.vm(host, disks=2), {"id": new(), "job_id": new()}
    _half_made(site, host, vm, ask, used=True)
    job = site.end_of(site.take(vm, **ask))
    assert job["state"] == "done", job
    assert site.agrees(host, vm)


def _half_deleted(site: Site, host: FakeAgent, vm: str, ask: dict[str, Any], *, restart: bool) -> None:
    """Both new volumes were made and not used. The deletion of the first one is cut off; then the VM stops, and may
    start on what the storage names."""
    refs = {disk: str(uuid.uuid5(uuid.UUID(ask["id"]), disk)) for disk in sorted(site.disk_ids(vm))}
    look = host.world.look_disk
    stage: list[str] = []

    def look_after(request: dict[str, Any]) -> dict[str, Any]:
        if host.asked("switch_leaves") and not stage:
            stage.append("made")
            for disk, volume in refs.items():
                made = {"disk": {"disk_id": disk, "domain": site.ref()}, "volume_id": volume, "capacity": 1024 * MIB}
                parent = site.disks[disk]["first_volume_id"]
                host.world.create_volume({**made, "parent_id": parent, "format": "cow"})
        if host.asked("discard_volume") and stage == ["made"]:
            stage.append("cut off")
            first = site.volumes(next(iter(refs)))[next(iter(refs.values()))]
            first.legality, first.backing_id = "illegal", None
            site.stop(host, vm)
            if restart:
                site.start(host, vm)
        return look(request)

    host.fail("switch_leaves", errors.HypervisorRefused(host_id=host.host_id, action="it", reason="no"))
    host.fail("discard_volume", errors.StorageTimeout(path="/mnt", seconds=5))
    host.world.look_disk = look_after  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("restart", [False, True])
def test_a_create_goes_forward_over_a_deletion_that_has_begun(site: Site, host: FakeAgent, restart: bool) -> None:
    """Where the VM was started on a part of the new volumes the snapshot is no single instant's."""
    vm, ask = site.vm(host, disks=2), {"id": new(), "job_id": new()}
    _half_deleted(site, host, vm, ask, restart=restart)
    job = site.end_of(site.take(vm, **ask), "done", "undone", "stuck")
    assert job["state"] == "done", job
    assert site.agrees(host, vm)
    assert site.call(snapshots.get_snapshot, id=ask["id"])["restorable"] is not restart


def test_every_host_that_was_asked_is_fenced(site: Site, host: FakeAgent) -> None:
    """The VM has moved since: a late ask must not make its volumes anew on the host of before."""
    other = site.host()
    vm, ask = site.vm(host), {"id": new(), "job_id": new()}
    look = host.world.look_disk

    def look_after(request: dict[str, Any]) -> dict[str, Any]:
        if host.asked("switch_leaves") and vm in host.world.vms:
            site.stop(host, vm)
            site.start(other, vm)
        return look(request)

    host.world.look_disk = look_after  # type: ignore[method-assign, assignment]
    for one in (host, other):
        one.fail("switch_leaves", errors.HypervisorRefused(host_id=one.host_id, action="it", reason="no"))
    assert site.end_of(site.take(vm, **ask))["state"] == "undone"
    assert host.asked("switch_leaves")
    assert host.asked("cancel_job")
    with pytest.raises(errors.StaleClaim):
        host.world.switch_leaves(host.asked("switch_leaves")[0])
    assert site.agrees(other, vm)
