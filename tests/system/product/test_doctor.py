"""Chains that somebody changed with virsh behind Drystone's back, on real machines: the removal refuses, the doctor
names what differs, the repair makes the database follow, and the guest loses nothing."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.stack import wait
from deploy.world import Machine, World
from tests.service.gateway.door import Ran
from tests.system.product import deaths
from tests.system.product.spoil import command, qemu_img, refused

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


# -- what comes to light by itself ------------------------------------------------------------------------


@contextlib.contextmanager
def scanning(world: World, **settings: object) -> Iterator[None]:
    """The snapshots service with other settings."""
    service = world.stack.process("snapshots")
    before = service.more
    try:
        service.more = {**before, **{f"DRYSTONE_{name.upper()}": str(value) for name, value in settings.items()}}
        service.stop()
        service.start()
        yield
    finally:
        service.more = before
        service.stop()
        service.start()


def leftovers(world: World) -> dict[str, str]:
    """code -> action"""
    ran = command(world, "domain", "leftovers", "data1", "--json")
    assert ran.code == 0, ran
    return {one["code"]: one["action"] for one in json.loads(ran.out)}


def until_left(world: World, *codes: str) -> dict[str, str]:
    wait.until(f"leftovers {codes}", lambda: sorted(leftovers(world)) == sorted(codes), 30)
    return leftovers(world)


def returns(world: World, vm: Machine) -> int:
    """What the removal of its newest snapshot gives back, as the list has it: the size of the leaf."""
    words = ("--vm", vm.api.vms.get(vm.id)["name"], "--sort", "-depth", "--json")
    return int(json.loads(command(world, "domain", "snapshots", "data1", *words).out)[0]["returns"])


def stray_volume(vm: Machine) -> Path:
    """A dropped volume that nobody came to delete, and that the database does not know."""
    first, stray = vm.folder() / volumes(vm)[0], vm.folder() / str(uuid.uuid4())
    for part in ("", ".lease"):
        shutil.copy(f"{first}{part}", f"{stray}{part}")
    meta = Path(f"{first}.meta").read_text()
    assert "LEGALITY=LEGAL\n" in meta
    Path(f"{stray}.meta").write_text(meta.replace("LEGALITY=LEGAL\n", "LEGALITY=ILLEGAL\n"))
    return stray


def said(action: str) -> list[str]:
    """The words of the command that an action names."""
    return shlex.split(action.split("drystone ")[1])


def test_leftovers_and_deep_chains_come_to_light_by_themselves_and_go_by_the_action_told(
    world: World, writing_vm: VmOf
) -> None:
    vm = writing_vm()
    name = vm.api.vms.get(vm.id)["name"]
    with scanning(world, rescan_every=1, deep_chain=2):
        vm.snapshot("first"), vm.snapshot("second")
        rows = vm.api.disk_snapshots(world.domain_id, vm_id=vm.id, sort="depth")["items"]
        frozen = [(vm.folder() / row["volume_id"]).stat().st_blocks * 512 for row in rows]
        assert [row["size"] for row in rows] == frozen
        assert all(row["made_at"] and row["returns"] for row in rows)
        vm.wait_for_writes(512)
        wait.until("the size of the leaf", lambda: returns(world, vm) > (rows[-1]["returns"] or 0), 30)
        removed, foreign = (vm.folder() / word for word in (f"_remove_me_{uuid.uuid4()}", "clone.qcow2"))
        qemu_img("create", "-f", "qcow2", removed, "1M")
        qemu_img("create", "-f", "qcow2", foreign, "1M")
        stray = stray_volume(vm)
        found = until_left(world, "deep_chain", "foreign_file", "half_deleted", "volume_without_disk")
        assert ("delete it by hand" in found["half_deleted"], "Move it" in found["foreign_file"]) == (True, True)
        removed.unlink()
        foreign.rename(world.stack.folder / foreign.name)
        until_left(world, "deep_chain", "volume_without_disk")
        seen = command(world, *said(found["volume_without_disk"]), "--json")
        assert codes(seen) == ["left_over"]
        discard = ("--repair", "--discard", stray.name, "--yes")
        assert command(world, *said(found["volume_without_disk"]), *discard).code == 0
        until_left(world, "deep_chain")
        assert not stray.exists()
        assert "first" in command(world, *said(found["deep_chain"])).out
        wanted = ("--vm", name, "--text", "first")
        gone = command(world, "domain", "snapshots", "data1", *wanted, "--remove", "--expect", "1", "--yes")
        assert gone.code == 0, gone
        until_left(world)
    deaths.assert_whole(vm, snapshots=1)
