"""From a VmSpec to libvirt's XML. Pure.

The domain is transient; disks have no <backingStore>, so libvirt reads the chain from the headers. Every disk has
its id as alias (`ua-<disk id>`), which QEMU's monitor shows as the device's name. QEMU gets a second monitor socket,
because libvirt's own is libvirt's.
"""

from __future__ import annotations

import uuid
from typing import Any
from xml.etree import ElementTree as ET

QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"
OURS_NS = "https://drystone.example/xmlns/vm/1"
ALIAS = "ua-"
MONITOR_ID = "drystone"

_TARGETS = {"virtio": "vd", "scsi": "sd", "sata": "sd"}
_MODELS = {"virtio": "virtio", "e1000": "e1000"}

Spec = dict[str, Any]  # contracts.hostagent.VmSpec, loaded

ET.register_namespace("qemu", QEMU_NS)
ET.register_namespace("drystone", OURS_NS)


def alias(disk_id: str) -> str:
    return f"{ALIAS}{disk_id}"


def disk_of(alias_name: str | None) -> str | None:
    """The disk id in one of our aliases, None for a foreign device."""
    text = (alias_name or "").removeprefix(ALIAS)
    try:
        return text if str(uuid.UUID(text)) == text else None
    except ValueError:
        return None


def name_of(vm_id: str) -> str:
    """libvirt's name of the domain: the VM's id keeps two VMs of one name apart; the user's name is the title."""
    return f"vm-{vm_id}"


def build(
    spec: Spec,
    leaves: dict[str, dict[str, str]],
    *,
    monitor: str,
    kvm: bool,
    emulator: str,
    lease: dict[str, Any] | None = None,
) -> str:
    """`leaves`: by disk id, {"path", "format" (cow or raw), "io" (native or threads), "cache", "variables" (where the
    UEFI variables lie if this is the boot disk)}. `lease`: {"lockspace", "key", "path", "offset"} of the sanlock lease
    that libvirt takes whenever the guest is to run."""
    domain = ET.Element("domain", type="kvm" if kvm else "qemu")
    _add(domain, "name", name_of(spec["id"]))
    _add(domain, "uuid", spec["id"])
    _add(domain, "title", spec["name"])
    _metadata(domain, spec)
    _add(domain, "memory", str(spec["memory"]), unit="b")
    _add(domain, "vcpu", str(spec["cpus"]), placement="static")
    _boot(domain, spec, leaves)
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if kvm:
        _add(domain, "cpu", mode="host-model", check="partial")
    _add(domain, "clock", offset="utc")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _add(domain, f"on_{event}", action)
    devices = _devices(domain, spec, leaves, emulator)
    if lease is not None:
        _lease(devices, lease)
    _monitor(domain, monitor)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def _metadata(domain: ET.Element, spec: Spec) -> None:
    """A mark that the domain is ours; a copy for people, never read back as truth."""
    metadata = _add(domain, "metadata")
    ours = ET.SubElement(metadata, f"{{{OURS_NS}}}vm")
    ours.set("id", spec["id"])


def boot_disk(spec: Spec) -> dict[str, Any] | None:
    """The disk that is booted from first; without an order the first one."""
    return min(spec["disks"], key=lambda disk: disk.get("boot_order") or len(spec["disks"]) + 1000, default=None)


def _boot(domain: ET.Element, spec: Spec, leaves: dict[str, dict[str, str]]) -> None:
    system = _add(domain, "os")
    _add(system, "type", "hvm", arch="x86_64", machine="q35")
    if spec["firmware"] == "uefi":
        system.set("firmware", "efi")
        # or libvirt takes the first one that fits: Debian's boots nothing that Microsoft has not signed
        _add(_add(system, "firmware"), "feature", enabled="no", name="secure-boot")
        first = boot_disk(spec)
        if first is not None:
            # libvirt makes the file from the firmware's template where it is not there yet, and never touches it again
            _add(system, "nvram", leaves[first["disk"]["disk_id"]]["variables"])
    boot = spec.get("boot") or {}
    for name in ("kernel", "initrd", "cmdline"):
        if boot.get(name) and (name == "kernel" or boot.get("kernel")):
            _add(system, name, boot[name])


def _devices(domain: ET.Element, spec: Spec, leaves: dict[str, dict[str, str]], emulator: str) -> ET.Element:
    devices = _add(domain, "devices")
    _add(devices, "emulator", emulator)
    if any(disk["bus"] == "scsi" for disk in spec["disks"]):
        _add(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    for disk, target in zip(spec["disks"], targets(spec["disks"]), strict=True):
        _disk(devices, disk, target, leaves[disk["disk"]["disk_id"]])
    for nic in spec["nics"]:
        _nic(devices, nic)
    _console(devices, spec)
    agent = _add(devices, "channel", type="unix")
    _add(agent, "target", type="virtio", name="org.qemu.guest_agent.0")
    if spec["display"] == "vnc":
        _add(devices, "graphics", type="vnc", autoport="yes", listen="127.0.0.1")
        _add(_add(devices, "video"), "model", type="vga")
    _add(devices, "memballoon", model="none")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    return devices


def _lease(devices: ET.Element, lease: dict[str, Any]) -> None:
    element = _add(devices, "lease")
    _add(element, "lockspace", lease["lockspace"])
    _add(element, "key", lease["key"])
    _add(element, "target", path=lease["path"], offset=str(lease["offset"]))


def targets(disks: list[dict[str, Any]]) -> list[str]:
    """Stable target names in the spec's order: vda, vdb, ... for virtio; sda, sdb, ... for the others."""
    counts: dict[str, int] = {}
    names = []
    for disk in disks:
        prefix = _TARGETS[disk["bus"]]
        number = counts[prefix] = counts.get(prefix, -1) + 1
        names.append(prefix + _letters(number))
    return names


def _letters(number: int) -> str:
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _disk(devices: ET.Element, disk: dict[str, Any], target: str, leaf: dict[str, str]) -> None:
    element = _add(devices, "disk", type="file", device="disk", snapshot="external")
    _add(
        element,
        "driver",
        name="qemu",
        type="qcow2" if leaf["format"] == "cow" else "raw",
        cache=leaf.get("cache", "none"),
        io=leaf.get("io", "native"),
        discard="unmap",
        # a full or broken storage pauses the guest, it does not see an error
        error_policy="stop",
        rerror_policy="stop",
    )
    _add(element, "source", file=leaf["path"])
    _add(element, "target", dev=target, bus=disk["bus"])
    if disk.get("read_only"):
        _add(element, "readonly")
    if disk["bus"] != "virtio":
        # virtio-blk cuts a serial to 20 characters; there the alias alone names the disk
        _add(element, "serial", disk["disk"]["disk_id"])
    else:
        _add(element, "serial", disk["disk"]["disk_id"][:20])
    if disk.get("boot_order"):
        _add(element, "boot", order=str(disk["boot_order"]))
    _add(element, "alias", name=alias(disk["disk"]["disk_id"]))


def _nic(devices: ET.Element, nic: dict[str, Any]) -> None:
    network = nic.get("network")
    element = _add(devices, "interface", type="network" if network else "user")
    _add(element, "mac", address=nic["mac"])
    if network:
        _add(element, "source", network=network)
    _add(element, "model", type=_MODELS[nic["model"]])
    if not nic.get("linked", True):
        _add(element, "link", state="down")
    _add(element, "alias", name=alias(nic["id"]))


def _console(devices: ET.Element, spec: Spec) -> None:
    log = (spec.get("boot") or {}).get("serial_log")
    if log:
        serial = _add(devices, "serial", type="file")
        _add(serial, "source", path=log, append="on")
    else:
        serial = _add(devices, "serial", type="pty")
    _add(serial, "target", port="0")


def _monitor(domain: ET.Element, socket: str) -> None:
    line = ET.SubElement(domain, f"{{{QEMU_NS}}}commandline")
    words = (
        "-chardev",
        f"socket,id={MONITOR_ID},path={socket.replace(',', ',,')},server=on,wait=off",
        "-mon",
        f"chardev={MONITOR_ID},mode=control",
    )
    for word in words:
        ET.SubElement(line, f"{{{QEMU_NS}}}arg").set("value", word)


def _add(parent: ET.Element, tag: str, text: str | None = None, /, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element
