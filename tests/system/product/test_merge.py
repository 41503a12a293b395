"""The product's main job on real machines: snapshots are merged under VMs that write without pause."""

from collections.abc import Callable

import pytest

from client.errors import ApiError
from deploy.stack import wait
from deploy.world import Machine, World
from tests.system.product import deaths

pytestmark = pytest.mark.lab
VmOf = Callable[..., Machine]
MIB = 2**20


def test_an_internal_layer_and_the_active_one_are_merged_under_a_writing_guest(writing_vm: VmOf) -> None:
    vm = writing_vm()
    kept, middle, newest = (vm.snapshot(name) for name in ("first", "middle", "newest"))
    vm.wait_for_writes(256)
    assert vm.remove(middle)["state"] == "done"
    vm.wait_for_writes(256)
    assert vm.remove(newest)["state"] == "done"
    assert [each["id"] for each in vm.api.snapshots.all(vm_id=vm.id)] == [kept]
    deaths.assert_whole(vm, snapshots=1)


def test_all_disks_of_a_vm_are_merged_in_one_removal(writing_vm: VmOf) -> None:
    vm = writing_vm(disks=2)
    snapshot = vm.snapshot("both")
    vm.wait_for_writes(128, disk=1)
    job = vm.remove(snapshot)
    assert len(list(vm.api.merges.all(removal_id=job["id"]))) == 2
    deaths.assert_whole(vm, snapshots=0)


def test_a_snapshot_of_chosen_disks_leaves_the_others_alone(writing_vm: VmOf) -> None:
    vm = writing_vm(disks=2)
    job = vm.api.create_snapshot(vm.id, {"description": "one disk", "disk_ids": [vm.disks[1]]})
    vm.finish(job["id"])
    assert [len(vm.chain(0)), len(vm.chain(1))] == [1, 2]
    vm.remove(str(job["snapshot_id"]))
    deaths.assert_whole(vm, snapshots=0)


def test_a_snapshot_taken_while_the_vm_is_down_is_merged_once_it_runs(writing_vm: VmOf) -> None:
    vm = writing_vm()
    vm.power_off()
    snapshot = vm.snapshot("offline")
    vm.start()
    assert vm.remove(snapshot)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


def test_asking_twice_with_one_key_is_asking_once(writing_vm: VmOf) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("once")
    first = vm.api.remove_snapshot(snapshot, key="once-and-again")
    again = vm.api.remove_snapshot(snapshot, key="once-and-again")
    assert first["id"] == again["id"]
    assert deaths.end_of(vm, first["id"])["state"] == "done"
    assert vm.api.remove_snapshot(snapshot, key="once-and-again")["state"] == "done"


def test_a_slow_merge_is_cancelled_and_leaves_everything_as_it_was(writing_vm: VmOf) -> None:
    vm = writing_vm(ring_mib=64, rate_kib=0)
    snapshot = vm.snapshot("kept")
    vm.wait_for_writes(8192)
    job = vm.api.remove_snapshot(snapshot, bandwidth=1 * MIB)
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
    with pytest.raises(ApiError, match="busy"):
        vm.api.create_snapshot(vm.id, {"description": "not now"})
    vm.api.cancel_job(job["id"])
    ended = deaths.end_of(vm, job["id"])
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "cancelled")
    assert vm.api.snapshots.get(snapshot)["restorable"] is False
    deaths.assert_whole(vm, snapshots=1)
    assert vm.remove(snapshot)["state"] == "done"


def test_the_limit_of_a_running_merge_is_lifted(writing_vm: VmOf) -> None:
    vm = writing_vm(ring_mib=64, rate_kib=0)
    snapshot = vm.snapshot("limited")
    vm.wait_for_writes(8192)
    job = vm.api.remove_snapshot(snapshot, bandwidth=64 * 1024)  # would take minutes
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["end"] > 0, 60)
    vm.api.limit_job(job["id"], 0)
    assert deaths.end_of(vm, job["id"], 60)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


def test_two_hosts_work_on_one_shared_domain(two_hosts_world: World) -> None:
    first, second = two_hosts_world.stack.hosts.values()
    pair = [two_hosts_world.machine(name, ring_mib=16, rate_kib=4096) for name in ("on-h1", "on-h2")]
    for vm, host in zip(pair, (first, second), strict=True):
        vm.start(host.id)
    assert [vm.api.vms.get(vm.id)["host_id"] for vm in pair] == [first.id, second.id]
    snapshots = [vm.snapshot("shared") for vm in pair]
    jobs = [vm.api.remove_snapshot(snapshot) for vm, snapshot in zip(pair, snapshots, strict=True)]
    assert [deaths.end_of(vm, job["id"])["state"] for vm, job in zip(pair, jobs, strict=True)] == ["done", "done"]
    for vm in pair:
        deaths.assert_whole(vm, snapshots=0)
        vm.power_off()


def test_a_vm_that_ran_on_one_host_starts_on_the_other(two_hosts_world: World) -> None:
    first, second = two_hosts_world.stack.hosts.values()
    vm = two_hosts_world.machine("moves", ring_mib=16, rate_kib=4096)
    vm.start(first.id)
    snapshot = vm.snapshot("before the move")
    with pytest.raises(ApiError, match="running"):
        vm.api.start_vm(vm.id, second.id)
    vm.power_off()
    vm.start(second.id)
    assert vm.remove(snapshot)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)
