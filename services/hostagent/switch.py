"""Take a snapshot: every disk's leaf becomes the new volume that was put on it, all at one instant.

The new volumes are made with their metadata before QEMU is asked, so the storage names them as leaves already: an empty
overlay over the old leaf is right whether or not QEMU switched. An unknown outcome therefore goes forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from chassis import crash
from contracts import errors
from services.hostagent import claims, layout, livexml, views
from services.hostagent.quiesce import Quiesce
from services.hostagent.virt import NoDomain
from services.hostagent.work import TURN_SECONDS, Parts, Request

_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)


class Switch:
    def __init__(self, parts: Parts, quiesce: Quiesce) -> None:
        self._parts, self._quiesce = parts, quiesce

    def ask(self, request: Request) -> dict[str, Any]:
        """contracts.hostagent.Switched."""
        with self._turns(request):
            down = self._down(request)
            waiting = [] if down else self._waiting(request)
            for entry in request["disks"]:
                self._put(entry)
            if not waiting:
                return {"quiesced": False, "live": not down}
            for entry in request["disks"]:  # a newer claim may have come while the volumes were made
                claims.take(self._parts.journal, entry["disk"]["disk_id"], request["claim"])
            return {"quiesced": self._switch(request, waiting), "live": True}

    @contextlib.contextmanager
    def _turns(self, request: Request) -> Iterator[None]:
        """Every disk, in the order of their ids, then the VM."""
        flow = request["claim"]["flow_id"]
        with contextlib.ExitStack() as stack:
            for disk_id in sorted(entry["disk"]["disk_id"] for entry in request["disks"]):
                claims.take(self._parts.journal, disk_id, request["claim"])
                stack.enter_context(self._parts.disks.hold(disk_id, flow, TURN_SECONDS))
                claims.take(self._parts.journal, disk_id, request["claim"])
            stack.enter_context(self._parts.vm(request["vm_id"], flow))
            yield

    def _put(self, entry: dict[str, Any]) -> None:
        """The new volume lies on the leaf, made now or before. Raises NotFound, ChainDiffers."""
        disk_id, domain = entry["disk"]["disk_id"], entry["disk"]["domain"]
        new, parent = entry["volume_id"], entry["parent_id"]
        view = self._parts.storage.volumes(domain, disk_id)
        there = {one["volume_id"]: one for one in view["volumes"]}
        if new not in there:
            if parent not in there:
                raise errors.NotFound(kind="volume", id=parent)
            if view["leaf"] != parent:
                raise errors.ChainDiffers(disk_id=disk_id, reason=f"the leaf is {view['leaf']}, not {parent}")
        elif there[new]["backing_id"] != parent:
            reason = f"{new} lies on {there[new]['backing_id']}, not on {parent}"
            raise errors.ChainDiffers(disk_id=disk_id, reason=reason)
        # asked for also where it is there: a crash may have left it half made
        self._parts.storage.create_volume(domain, disk_id, new, parent, there[parent]["capacity"])

    def _down(self, request: Request) -> bool:
        """Whether no QEMU of this VM lives, and libvirt agrees."""
        first = request["disks"][0]["disk"]
        qemu, libvirt_, unsure = self._parts.eyes.both(request["vm_id"], first)
        if qemu.alive:
            return False
        if libvirt_.up:
            raise errors.VmUnsure(vm_id=request["vm_id"], reason=str(unsure))
        return True

    def _waiting(self, request: Request) -> list[tuple[dict[str, Any], views.Libvirt]]:
        """The disks that QEMU has not switched yet. Raises ChainDiffers where it writes to something else."""
        waiting = []
        for entry in request["disks"]:
            qemu, libvirt_ = self._parts.sure({"vm_id": request["vm_id"], "disk": entry["disk"]})
            if qemu.job is not None:
                raise errors.DiskBusy(disk_id=entry["disk"]["disk_id"], flow_id=qemu.job.id)
            qemu.refuse_beside(entry["disk"]["disk_id"])
            if qemu.leaf == entry["parent_id"]:
                waiting.append((entry, libvirt_))
            elif qemu.leaf != entry["volume_id"]:
                reason = f"QEMU writes to {qemu.leaf}, not {entry['parent_id']}"
                raise errors.ChainDiffers(disk_id=entry["disk"]["disk_id"], reason=reason)
        return waiting

    def _switch(self, request: Request, waiting: list[tuple[dict[str, Any], views.Libvirt]]) -> bool:
        vm_id = request["vm_id"]
        live = livexml.read(self._look(vm_id))
        quiesced = self._quiesce.freeze(request, live.agent_connected)
        try:
            xml = snapshot_xml({libvirt_.target: entry for entry, libvirt_ in waiting}, live)
            crash.point("switch.before_ask")
            self._create(vm_id, xml, waiting)
            crash.point("switch.after_create")
        finally:
            if quiesced:
                self._quiesce.thaw(vm_id)
        return quiesced

    def _look(self, vm_id: str) -> str:
        try:
            return self._parts.virt.look(vm_id, "look", lambda domain: domain.XMLDesc(0))
        except NoDomain:
            raise errors.VmUnsure(vm_id=vm_id, reason="libvirt has lost the VM") from None

    def _create(self, vm_id: str, xml: str, waiting: list[tuple[dict[str, Any], views.Libvirt]]) -> None:
        def create(domain: Any) -> None:
            domain.snapshotCreateXML(xml, _FLAGS)

        try:
            self._parts.virt.ask(vm_id, "snapshotCreateXML", create, point="switch.after_ask")
        except NoDomain:
            raise errors.VmUnsure(vm_id=vm_id, reason="libvirt has lost the VM") from None
        except errors.HypervisorRefused:
            switched = [self._parts.eyes.qemu(vm_id, entry["disk"]).leaf == entry["volume_id"] for entry, _ in waiting]
            if not all(switched):
                raise


def snapshot_xml(chosen: dict[str, dict[str, Any]], live: livexml.LiveDomain) -> str:
    """`chosen`: by target, the NewLeaf. Disks left out of the list would be snapshotted too: they are named 'no'."""
    root = ET.Element("domainsnapshot")
    disks = ET.SubElement(root, "disks")
    for disk in live.disks:
        entry = chosen.get(disk.target)
        element = ET.SubElement(disks, "disk", name=disk.target, snapshot="external" if entry else "no")
        if entry:
            domain, disk_id = entry["disk"]["domain"], entry["disk"]["disk_id"]
            path = layout.volume_path(domain["path"], domain["id"], disk_id, entry["volume_id"])
            element.set("type", "file")
            ET.SubElement(element, "driver", type="qcow2")
            ET.SubElement(element, "source", file=path)
    return ET.tostring(root, encoding="unicode")
