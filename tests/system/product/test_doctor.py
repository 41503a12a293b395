"""Chains that somebody changed with virsh behind Drystone's back, on real machines: the removal refuses, the doctor
names what differs, the repair makes the database follow, and the guest loses nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.stack import wait
from deploy.world import Machine, World
from tests.service.gateway.door import Ran
from tests.system.product import deaths
from tests.system.product.spoil import command, refused

pytestmark = pytest.mark.lab
VmOf = Callable[..., Machine]


def doctor(world: World, vm: Machine, *words: str) -> Ran:
    return command(world, "doctor", "disk", vm.disks[0], "--json", *words)


def codes(ran: Ran) -> list[str]:
    assert ran.code in (0, 10), ran
    return [one["code"] for one in json.loads(ran.out)["differences"]]


def virsh(world: World, *words: str | Path) -> None:
    next(iter(world.stack.hosts.values())).virsh(*words)


def volumes(vm: Machine) -> list[str]:
    return [row["volume_id"] for row in vm.chain()]


def as_run(vm: Machine) -> list[str]:
    """The chain that QEMU has, first volume first."""
    facts: Any = vm.api.chain(vm.disks[0])["facts"]
    return list(reversed(facts["qemu"]["chain"]))


def test_an_inner_volume_that_virsh_merged_is_repaired_and_the_rest_removed(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    first, second, third = (vm.snapshot(name) for name in ("first", "second", "third"))
    vm.wait_for_writes(128)
    base, top = (vm.folder() / volume for volume in volumes(vm)[1:3])
    virsh(world, "blockcommit", vm.id, volume_path(vm), "--base", base, "--top", top, "--wait")
    refused(lambda: vm.api.remove_snapshot(first), 409, "chain_differs", "the storage has")
    found = doctor(world, vm)
    assert (found.code, "snapshot_lost" in codes(found)) == (10, True)
    assert command(world, "doctor", "domain", "data1").code == 10
    assert codes(doctor(world, vm, "--repair", "--yes")) == ["left_over"]
    assert volumes(vm) == as_run(vm)
    assert [row["id"] for row in vm.api.snapshots.all(vm_id=vm.id)] == [first, second]
    refused(lambda: vm.api.snapshots.get(third), 404, "not_found")
    healed = doctor(world, vm, "--repair", "--discard", top.name, "--yes")
    assert (healed.code, codes(healed)) == (0, [])
    assert command(world, "doctor", "domain", "data1").code == 0
    for snapshot in (second, first):
        assert vm.remove(snapshot)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


def volume_path(vm: Machine) -> Path:
    """The disk, as virsh finds it: by the file that QEMU writes to."""
    return vm.folder() / as_run(vm)[-1]


@pytest.mark.chaos
def test_a_pivot_by_virsh_is_written_down_before_a_start_from_the_old_leaf_loses_writes(
    world: World, writing_vm: VmOf
) -> None:
    vm = writing_vm()
    kept, _ = vm.snapshot("kept"), vm.snapshot("merged")
    vm.wait_for_writes(128)
    old = volumes(vm)[-1]
    virsh(world, "blockcommit", vm.id, volume_path(vm), "--active", "--shallow", "--pivot")
    vm.wait_for_writes(128)
    refused(lambda: vm.api.remove_snapshot(kept), 409, "chain_differs", "QEMU")
    assert codes(doctor(world, vm))[0] == "leaf_differs"
    healed = doctor(world, vm, "--repair", "--discard", old, "--yes")
    assert (healed.code, volumes(vm)) == (0, as_run(vm))
    deaths.assert_whole(vm, snapshots=1)
    assert vm.remove(kept)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.chaos
def test_a_snapshot_by_virsh_is_named_with_the_command_that_merges_it_back(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("ours")
    foreign = vm.folder() / "theirs.qcow2"
    spec = ("--disk-only", "--no-metadata", "--diskspec", f"vda,file={foreign}")
    virsh(world, "snapshot-create-as", vm.id, "theirs", *spec)
    vm.wait_for_writes(64)
    refused(lambda: vm.api.remove_snapshot(snapshot), 409, "chain_differs", foreign)
    found = doctor(world, vm)
    assert (found.code, codes(found)) == (10, ["foreign_file_in_use"])
    assert command(world, "doctor", "disk", vm.disks[0], "--repair", "--yes").code == 4
    action = json.loads(found.out)["differences"][0]["action"]
    virsh(world, *shlex.split(action.split("virsh ")[1].split(";")[0]))
    foreign.unlink()
    wait.until("all sides to agree", lambda: doctor(world, vm).code == 0, 30)
    assert vm.remove(snapshot)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.chaos
def test_a_merge_by_virsh_whose_vm_stopped_is_put_back(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    _, newest = vm.snapshot("first"), vm.snapshot("second")
    vm.wait_for_writes(128)
    base, top = (vm.folder() / volume for volume in volumes(vm)[:2])
    virsh(world, "blockcommit", vm.id, volume_path(vm), "--base", base, "--top", top, "--wait")
    vm.power_off()
    assert codes(doctor(world, vm)) == ["not_recorded"]
    healed = doctor(world, vm, "--repair", "--yes")
    assert (healed.code, codes(healed), len(volumes(vm))) == (0, [], 3)
    deaths.assert_whole(vm, snapshots=2)
    assert vm.remove(newest)["state"] == "done"
    deaths.assert_whole(vm, snapshots=1)
