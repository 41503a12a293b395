"""Snapshots of VMs that are down, that stop and that start while they are merged, through the whole product."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from client.errors import ApiError
from deploy.stack import wait
from deploy.world import Machine, World
from tests.system.product import deaths

pytestmark = pytest.mark.lab
VmOf = Callable[..., Machine]
MIB = 2**20


def test_all_snapshots_of_a_vm_that_is_down_are_merged(writing_vm: VmOf) -> None:
    vm = writing_vm()
    taken = []
    for name in ("first", "second", "third"):
        taken.append(vm.snapshot(name))
        vm.wait_for_writes(128)
    vm.power_off()
    assert vm.remove(taken[1])["state"] == "done"
    assert len(vm.chain()) == 3
    for snapshot in (taken[2], taken[0]):
        assert vm.remove(snapshot)["state"] == "done"
    assert len(vm.chain()) == len(vm.files()) == 1
    assert vm.check().lost == vm.check().damaged == 0
    vm.start(check=True)
    deaths.assert_whole(vm, snapshots=0)


def test_a_start_waits_for_the_copy_in_hand_or_for_its_cancel(writing_vm: VmOf) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("slow")
    vm.wait_for_writes(2048)
    vm.power_off()
    job = vm.api.remove_snapshot(snapshot, bandwidth=1 * MIB)
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
    with pytest.raises(ApiError, match="its disks are being written"):
        vm.api.start_vm(vm.id)
    vm.api.cancel_job(job["id"])
    assert deaths.end_of(vm, job["id"])["reason"]["code"] == "cancelled"
    vm.start(check=True)
    assert vm.remove(snapshot)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.parametrize("newest", [False, True])
def test_a_merge_whose_vm_is_killed_goes_on_offline(world: World, writing_vm: VmOf, newest: bool) -> None:
    vm = writing_vm(ring_mib=64, rate_kib=0)
    snapshot = vm.snapshot("goes")
    vm.wait_for_writes(8192)
    if not newest:
        vm.snapshot("stays")
    job = vm.api.remove_snapshot(snapshot, bandwidth=4 * MIB)
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
    os.kill(world.stack.hosts["h1"].qemu_pid(f"vm-{vm.id}"), signal.SIGKILL)
    assert deaths.end_of(vm, job["id"])["state"] == "done"
    vm.wait_for_state("down")
    assert vm.check().lost == vm.check().damaged == 0
    vm.start(check=True)
    deaths.assert_whole(vm, snapshots=0 if newest else 1)
