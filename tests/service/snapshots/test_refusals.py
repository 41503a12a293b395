"""What is refused at the door, with the declared error, and leaves nothing behind."""

from __future__ import annotations

import pytest

from contracts import errors, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.agent_world import Job
from tests.fakes.process import Process
from tests.fakes.site import Site, new

pytestmark = pytest.mark.usefixtures("running")


def test_the_same_request_finds_its_job(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    ask = {"id": new(), "job_id": new(), "description": "again"}
    first = site.take(vm, **ask)
    assert site.take(vm, **ask)["id"] == first["id"]
    assert site.end_of(first)["state"] == "done"
    assert site.take(vm, **ask)["state"] == "done"
    assert len(host.asked("switch_leaves")) == 1


def test_another_body_under_the_same_id_is_a_conflict(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    job = site.take(vm)
    with pytest.raises(errors.IdempotencyConflict):
        site.take(vm, id=job["snapshot_id"], job_id=job["id"], description="other")
    site.end_of(job)
    with pytest.raises(errors.AlreadyExists):
        site.take(vm, id=job["snapshot_id"])


def test_a_removal_is_asked_for_twice_and_done_once(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot, removal_id = site.taken(vm), new()
    site.remove(snapshot, job_id=removal_id)
    assert site.remove(snapshot, job_id=removal_id)["id"] == removal_id
    site.end_of({"id": removal_id, "kind": "removal"})
    assert site.remove(snapshot, job_id=removal_id)["state"] == "done"
    assert len(host.asked("start_commit")) == 1


def test_one_job_per_disk(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    older, newer = site.taken(vm), site.taken(vm)
    host.world.job_rate = 0
    removal = site.remove(newer)
    for ask in (lambda: site.take(vm), lambda: site.remove(older), lambda: site.remove(newer)):
        with pytest.raises(errors.DiskBusy) as caught:
            ask()
        assert caught.value.fields["flow_id"] == removal["id"]
    for id_ in (vm, site.disk_ids(vm)[0]):
        with pytest.raises(errors.DiskBusy):
            site.call(snapshots.check_idle, id=id_)
    host.world.job_rate = 64 * MIB
    site.end_of(removal)
    assert site.call(snapshots.check_idle, id=vm) == {}


@pytest.mark.parametrize(
    ("state", "error"),
    [("starting", errors.VmWrongState), ("unsure", errors.VmUnsure), ("unknown", errors.HostNotUp)],
)
def test_a_vm_between_states_is_left_alone(site: Site, host: FakeAgent, state: str, error: type[Exception]) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    site.vms[vm]["state"] = state
    with pytest.raises(error):
        site.take(vm)
    with pytest.raises(error):
        site.remove(snapshot)
    site.vms[vm]["state"] = "running"
    assert site.agrees(host, vm)


def test_a_vm_that_is_down_and_has_no_lease_is_refused(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    site.stop(host, vm)
    site.leases = False
    with pytest.raises(errors.NoLease, match="nothing would keep it from being started"):
        site.remove(snapshot)


def test_a_chain_that_differs_is_refused(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    disk = site.disk_ids(vm)[0]
    foreign = new()
    host.world.vms[vm].chains[disk].insert(0, foreign)
    with pytest.raises(errors.ChainDiffers, match=foreign):
        site.remove(snapshot)
    host.world.vms[vm].chains[disk].pop(0)
    assert site.end_of(site.remove(snapshot))["state"] == "done"


def test_a_foreign_block_job_is_left_alone(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    older, _ = site.taken(vm), site.taken(vm)
    disk = site.disk_ids(vm)[0]
    chain = host.world.vms[vm].chains[disk]
    host.world.job_rate = 0
    host.world.vms[vm].jobs[disk] = Job(chain[1], chain[0], None, end=MIB, speed=0)
    for ask in (lambda: site.take(vm), lambda: site.remove(older)):
        with pytest.raises(errors.ForeignJob):
            ask()


def test_a_full_domain_is_refused_with_the_numbers(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    for volume in site.volumes(site.disk_ids(vm)[0]).values():
        volume.actual_size = 100 * MIB
    host.world.storage.domains[site.domain["id"]].free = 1024 * MIB + 10
    with pytest.raises(errors.NoSpace) as caught:
        site.remove(snapshot)
    assert (caught.value.fields["needs"], caught.value.fields["has"]) == (100 * MIB, 10)


def test_disks_that_are_not_the_vms_are_refused(site: Site, host: FakeAgent) -> None:
    vm, other = site.vm(host), site.vm(host)
    with pytest.raises(errors.NotFound, match="disk plugged in VM"):
        site.take(vm, disk_ids=site.disk_ids(other))
    with pytest.raises(errors.BadRequest, match="no plugged disk"):
        site.take(vm, disk_ids=[])


def test_domain_and_host_must_be_usable(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    site.domain["state"] = "inactive"
    with pytest.raises(errors.DomainNotActive):
        site.take(vm)
    site.domain["state"] = "active"
    site.hosts[host.host_id]["clock_offset"] = -5.0
    with pytest.raises(errors.ClockOff):
        site.take(vm)
    site.hosts[host.host_id]["state"] = "non_responsive"
    with pytest.raises(errors.HostNotUp):
        site.take(vm)


def test_a_vm_that_is_down_needs_some_host(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host, running=False)
    site.hosts[host.host_id]["state"] = "problem"
    with pytest.raises(errors.NoHost, match=r"No host of data center .* none is up"):
        site.take(vm)


def test_inventory_and_host_must_agree_whether_it_runs(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    site.vms[vm] |= {"state": "down", "host_id": None}
    with pytest.raises(errors.VmWrongState, match="running on host"):
        site.take(vm)


def test_unknown_things_are_not_found(site: Site) -> None:
    for promise in (snapshots.get_snapshot, snapshots.get_job, snapshots.get_merge, snapshots.cancel_job):
        with pytest.raises(errors.NotFound):
            site.call(promise, id=new())
    with pytest.raises(errors.NotFound):
        site.call(snapshots.get_chain, disk_id=new())
    with pytest.raises(errors.NotFound):
        site.remove(new())
    with pytest.raises(errors.NotFound):
        site.take(new())


def test_a_cursor_of_nowhere_is_a_bad_request(site: Site) -> None:
    with pytest.raises(errors.BadRequest):
        site.call(snapshots.list_jobs, after="nonsense")


def test_a_longer_chain_than_the_limit_is_refused(site: Site, host: FakeAgent, running: Process) -> None:
    running.kill()
    site.restart(snapshots_per_vm=1)
    vm = site.vm(host)
    site.taken(vm)
    with pytest.raises(errors.LimitExceeded):
        site.take(vm)
