"""A VM with UEFI firmware: what its firmware remembers lies beside its boot disk and goes where the VM goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from client.errors import ApiError
from deploy.stack import wait
from deploy.world import MIB, Machine, World

pytestmark = pytest.mark.lab
FIRMWARE_SECONDS = 120  # the firmware comes first, under emulation
FIRMWARE = "/usr/share/qemu/firmware"  # what libvirt looks for firmware by
MARK = b"kept from host to host"


def start(vm: Machine, host_id: str) -> None:
    safe = vm.acks().safe(0)
    vm.api.start_vm(vm.id, host_id)
    vm.wait_for_writes(1, since=safe, seconds=FIRMWARE_SECONDS)


def uefi_vm(world: World) -> Machine:
    vm = world.machine("uefi", ring_mib=16, rate_kib=2048)
    vm.api.vms.change(vm.id, vm.api.vms.get(vm.id)["version"], {"firmware": "uefi", "memory": 512 * MIB})
    return vm


def test_uefi_variables_lie_beside_the_boot_disk_and_go_along_to_another_host(two_hosts_world: World) -> None:
    world = two_hosts_world
    first, second = (host.id for host in world.stack.hosts.values())
    vm = uefi_vm(world)
    variables = vm.folder() / f"{vm.disks[0]}.nvram"

    start(vm, first)
    snapshot = vm.snapshot("below")
    vm.wait_for_writes(64, seconds=60)
    vm.remove(snapshot)
    vm.power_off()
    assert vm.files() == {vm.chain()[-1]["volume_id"], variables.name}
    assert vm.check().ok
    made = variables.stat().st_ino
    with variables.open("r+b") as file:  # into the spare part at its end, which the firmware uses for reclaims only
        file.seek(-len(MARK), os.SEEK_END)
        file.write(MARK)
    assert not list(Path("/var/lib/libvirt/qemu/nvram").glob(f"*{vm.id}*")), "variables lie on the machine"

    start(vm, second)
    assert variables.stat().st_ino == made, "the second host made new ones"
    assert not world.api.diagnose_disk(vm.disks[0])["differences"]
    vm.power_off()
    assert variables.read_bytes().endswith(MARK), "they were made anew"

    vm.api.vms.delete(vm.id, vm.api.vms.get(vm.id)["version"])
    wait.until("the disk's end", lambda: not vm.folder().exists(), 60)


def test_a_host_without_uefi_firmware_and_variables_that_are_a_link_are_told(two_hosts_world: World) -> None:
    world = two_hosts_world
    vm = uefi_vm(world)
    first, second = world.stack.hosts.values()
    first.run("mount", "-t", "tmpfs", "tmpfs", FIRMWARE)
    try:
        with pytest.raises(ApiError) as refused:
            vm.api.start_vm(vm.id, first.id)
    finally:
        first.run("umount", FIRMWARE)
    assert refused.value.code == "hypervisor_refused"
    assert "firmware" in str(refused.value)

    link = vm.folder() / f"{vm.disks[0]}.nvram"
    link.symlink_to(vm.chain()[-1]["volume_id"])
    with pytest.raises(ApiError, match="no file of its own"):
        vm.api.start_vm(vm.id, second.id)
    assert vm.state() == "down"
    link.unlink()  # a disk with a foreign file is not deleted
    vm.api.vms.delete(vm.id, vm.api.vms.get(vm.id)["version"])
