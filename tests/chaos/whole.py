"""What must hold after every run, whatever died in it. Each check is an assertion with a sentence."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deploy.world import Machine
from tests.chaos.operations import Operation
from tests.chaos.place import Place

PARTS = ("", ".meta", ".lease")  # the files of a volume
BACK = 20.0  # seconds in which an agent finds its libvirtd again, and inventory hears of it


def assert_whole(place: Place, operation: Operation, made: str | None) -> None:
    """The VMs run when this is called, and run again when it ends."""
    for vm in operation.touched:
        found = place.snapshots(vm)
        wanted = operation.expected(vm, made)
        assert sorted(found) == sorted(wanted), f"snapshots {found} are there, {wanted} should be"
        vm.wait_for_writes(16, disk=0, seconds=80)
        for disk in range(len(vm.disks)):
            all_sides_agree(place, vm, disk, len(wanted) + 1)
        _nothing_is_locked(place, vm)
        vm.power_off()
        for disk in range(len(vm.disks)):
            result = vm.check(disk)
            assert result.ok, result.summary()
            _headers_are_the_chain(vm, disk)
        _starts(place, vm)
    operation.clean()
    nothing_is_left(place)


def all_sides_agree(place: Place, vm: Machine, disk: int, layers: int) -> None:
    """The database, QEMU, libvirt and the storage have the same chain, once libvirt can be asked."""

    def look() -> Any:
        told = vm.api.chain(vm.disks[disk])
        return told if told["facts"] and told["facts"]["libvirt"]["state"] != "away" else None

    def diagnose() -> Any:
        found = vm.api.diagnose_disk(vm.disks[disk])
        return found if "not_seen" not in [one["code"] for one in found["differences"]] else None

    told = place.until("the facts of the disk, libvirt's too", look, BACK)
    volumes = [str(row["volume_id"]) for row in told["volumes"]]
    seen = told["facts"]
    assert len(volumes) == layers, f"disk {disk} has {len(volumes)} volumes in the database, not {layers}"
    assert seen["qemu"]["chain"] == volumes[::-1], f"QEMU has {seen['qemu']['chain']}, the database {volumes[::-1]}"
    assert seen["storage"]["leaf"] == volumes[-1], f"the storage's leaf is {seen['storage']['leaf']}"
    assert seen["unsure"] is None, f"the VM is unsure: {seen['unsure']}"
    assert seen["qemu"]["job"] is None, f"a job is left: {seen['qemu']['job']}"
    differences = place.until("a host that the doctor can ask", diagnose, BACK)["differences"]
    assert not differences, f"the doctor says: {differences}"


def _nothing_is_locked(place: Place, vm: Machine) -> None:
    """No job of the VM goes on, no pause of the guest is written down."""
    going = [dict(job) for job in vm.api.jobs.all(vm_id=vm.id) if job["state"] not in ("done", "undone")]
    assert not going, f"jobs go on: {going}"
    journal = place.stack.agents["h1"].folder / "journal.json"
    pauses = json.loads(journal.read_text()).get("pauses") if journal.exists() else None  # made when it is first needed
    assert not pauses, f"the agent's journal has pauses: {pauses}"


def _headers_are_the_chain(vm: Machine, disk: int) -> None:
    """What the qcow2 headers say, without any word of ours."""
    volumes = [str(row["volume_id"]) for row in vm.chain(disk)]
    words = ("qemu-img", "info", "--backing-chain", "--output=json", str(vm.folder(disk) / volumes[-1]))
    told = json.loads(subprocess.run(words, check=True, capture_output=True, timeout=60).stdout)
    names = [Path(one["filename"]).name for one in told]
    assert names == volumes[::-1], f"the headers say {names}, the database {volumes[::-1]}"


def _starts(place: Place, vm: Machine) -> None:
    """The guest reads on from where it was: what it found lower than acknowledged is a finding."""
    place.running(vm)
    findings = vm.acks().findings()
    assert not findings, f"{findings}"


def nothing_is_left(place: Place) -> None:
    """Every file in the images' folders is one of a volume that the database knows."""
    images = place.vm.domain / "images"
    wanted = set()
    for vm in place.machines:
        for number, disk in enumerate(vm.disks):
            ids = [str(row["volume_id"]) for row in vm.chain(number)]
            wanted |= {f"{disk}/{volume}{part}" for volume in ids for part in PARTS}
    found = {str(path.relative_to(images)) for path in images.rglob("*") if not path.is_dir()}
    assert found <= wanted, f"left behind: {_some(found - wanted)}"
    assert wanted <= found, f"gone: {_some(wanted - found)}"
    spare = sorted(str(path) for path in (place.stack.folder / "spare").rglob("images/*"))
    assert not spare, f"left behind: {_some(spare)}"
    leftovers = place.api.rebuild_overview(place.world.domain_id)["leftovers"]
    assert not leftovers, f"{leftovers} leftovers in the domain's list"


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:6])
