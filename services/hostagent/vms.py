"""Start and stop a VM, and say how it is."""

from __future__ import annotations

import os
import time
from typing import Any

import libvirt

from chassis import crash, logs
from contracts import errors
from services.hostagent import accelerator, domainxml, layout, monitor, process, views
from services.hostagent.opening import Opening
from services.hostagent.record import Record
from services.hostagent.virt import NoDomain
from services.hostagent.work import Parts

END_SECONDS = 15.0  # from a power-off until QEMU's process is gone

Facts = dict[str, Any]  # contracts.hostagent.VmFacts
_log = logs.get("vms")


class Vms:
    def __init__(self, parts: Parts, opening: Opening) -> None:
        self._parts = parts
        self._place, self._eyes, self._virt = parts.place, parts.eyes, parts.virt
        self._monitors, self._storage = parts.monitors, parts.storage
        self._record, self._opening = Record(parts), opening

    def look(self, vm_id: str, life: str | None = None) -> Facts:
        """`life`: libvirt's word where the caller has it already."""
        found = process.find(vm_id)
        status = self._status(found)
        libvirt_ = life or self._eyes.life(vm_id)
        qemu = "absent" if found is None else status and ("running" if status == "running" else "paused")
        reason = views.life_difference(qemu or "unreachable", libvirt_)
        if found is not None and not found.alive():
            found, qemu, reason = None, "absent", None
        state = "unsure" if reason else {"absent": "down"}.get(qemu or "", qemu)
        return {
            "vm_id": vm_id,
            "state": state,
            "reason": reason or "",
            "pid": found.pid if found else None,
            "paused_by": self._paused_by(vm_id, status) if qemu == "paused" else "none",
        }

    def start(self, spec: dict[str, Any]) -> Facts:
        """Create the transient domain on the storage's leaves; done before: its facts."""
        vm_id = spec["id"]
        with self._parts.vms.hold(vm_id, f"start of VM {vm_id}", 20.0):
            facts = self._settled(vm_id)
            if facts["state"] == "down":
                self._launch(spec)
            elif not self._opening.is_noted(vm_id):
                return facts
            self._opening.go_on(vm_id)
        return self.look(vm_id)

    def _launch(self, spec: dict[str, Any]) -> None:
        """With a lease the guest stands still yet."""
        vm_id, lease = spec["id"], spec.get("lease")
        self._monitors.forget(vm_id)
        element = self._parts.leasing.prepare(vm_id, lease)
        for disk in spec["disks"]:
            self._record.put_back(disk["disk"])  # a VM never starts on a chain that was not recorded
            self._make_bare(disk["disk"])
        if element is not None:
            self._opening.note(spec, element["offset"])
        try:
            xml = self._build(spec, element)
            crash.point("start.before_ask")
            with self._parts.leasing.telling(vm_id, lease):
                self._virt.launch(vm_id, xml, standing=element is not None)
        except errors.Problem as problem:
            if not isinstance(problem, errors.HypervisorAway):  # that one may come up later
                self._opening.forget(vm_id)
            raise
        crash.point("start.after_settled")

    def _make_bare(self, disk: dict[str, Any]) -> None:
        """libvirt reads backing file names now, and puts them together at every commit. No start fails for a name."""
        try:
            done = self._storage.make_bare(disk["domain"], disk["disk_id"])
        except (errors.NoSpace, errors.StorageFailed, errors.StorageTimeout) as problem:
            _log.warning("backing file names stay as they are", disk_id=disk["disk_id"], reason=str(problem))
            return
        if done["bare"]:
            _log.info("backing file names are made bare", disk_id=disk["disk_id"], volumes=done["bare"])
        for volume_id, why in done["kept"].items():
            _log.warning("a backing file name stays as it is", volume_id=volume_id, reason=why)

    def shut_down(self, vm_id: str) -> Facts:
        facts = self._settled(vm_id)
        if facts["state"] != "down":
            self._ask(vm_id, "shutdown", lambda domain: domain.shutdown())
        return self.look(vm_id)

    def power_off(self, vm_id: str) -> Facts:
        self._opening.forget(vm_id)
        facts = self._settled(vm_id)
        if facts["state"] != "down":
            found = process.find(vm_id)
            self._ask(vm_id, "destroy", lambda domain: domain.destroy())
            limit = time.monotonic() + END_SECONDS
            while found is not None and found.alive() and time.monotonic() < limit:
                time.sleep(0.05)
        self._monitors.forget(vm_id)
        return self.settled_look(vm_id)

    def _settled(self, vm_id: str) -> Facts:
        """The facts when QEMU and libvirt agree; a repair is tried first. Raises VmUnsure, HypervisorAway."""
        facts = self.settled_look(vm_id)
        if facts["state"] == "unsure":
            if not self._virt.connected:
                raise self._virt.away(self._virt.fault)
            self._parts.repair.mend(vm_id)
            facts = self.settled_look(vm_id)
        if facts["state"] == "unsure":
            raise errors.VmUnsure(vm_id=vm_id, reason=facts["reason"])
        return facts

    def settled_look(self, vm_id: str) -> Facts:
        """The facts; libvirt gets a moment to notice what QEMU did."""
        limit = time.monotonic() + self._place.agree_seconds
        while True:
            facts = self.look(vm_id)
            if facts["state"] != "unsure" or time.monotonic() > limit:
                return facts
            time.sleep(0.1)

    def _ask(self, vm_id: str, what: str, call: Any) -> None:
        try:
            self._virt.ask(vm_id, what, call)
        except NoDomain:
            if process.find(vm_id) is not None:
                raise errors.VmUnsure(vm_id=vm_id, reason="libvirt has lost the VM") from None

    def _build(self, spec: dict[str, Any], lease: dict[str, Any] | None) -> str:
        leaves = {disk["disk"]["disk_id"]: self._leaf(disk) for disk in spec["disks"]}
        first = domainxml.boot_disk(spec)
        if spec["firmware"] == "uefi" and first is not None:
            self._storage.check_variables(first["disk"]["domain"], first["disk"]["disk_id"])
        kvm = accelerator.kvm(self._place.accelerator, self._place.emulator)
        socket = self._monitors.path(spec["id"])
        socket.parent.mkdir(parents=True, exist_ok=True)
        emulator = self._place.emulator
        return domainxml.build(spec, leaves, monitor=str(socket), kvm=kvm, emulator=emulator, lease=lease)

    def _leaf(self, disk: dict[str, Any]) -> dict[str, str]:
        """The volume to start from: the one that the marks on the storage name, if the database agrees."""
        domain, disk_id = disk["disk"]["domain"], disk["disk"]["disk_id"]
        view = self._storage.volumes(domain, disk_id)
        leaf = self._storage.leaf_of(view)
        if disk["leaf"] and disk["leaf"] != leaf:
            reason = f"the database has the leaf {disk['leaf']}, the storage {leaf}"
            raise errors.ChainDiffers(disk_id=disk_id, reason=reason)
        volumes = {volume["volume_id"]: volume for volume in view["volumes"]}
        refuse_outside(volumes, leaf)
        if volumes[leaf]["volume_type"] == "shared":
            owner = volumes[leaf]["template_disk_id"] or disk_id
            raise errors.TemplateVolume(action="A start on it", volume_id=leaf, template_disk_id=owner)
        # threads: on a file system a native submit may block QEMU's main loop
        return {
            "path": layout.volume_path(domain["path"], domain["id"], disk_id, leaf),
            "format": volumes[leaf]["format"],
            "io": "threads",
            "variables": layout.variables_path(domain["path"], domain["id"], disk_id),
        }

    def _status(self, found: process.Process | None) -> str | None:
        if found is None:
            return None
        try:
            return self._monitors.status(found.vm_id, 2.0)
        except (monitor.Mute, monitor.Refused):
            return None

    def _paused_by(self, vm_id: str, status: str | None) -> str:
        if self._parts.journal.get("pauses", vm_id) or self._opening.is_noted(vm_id):
            return "agent"
        return "io_error" if status == "io-error" else "user"

    def everyone(self) -> list[Facts]:
        """Every VM of ours that QEMU or libvirt knows; HypervisorAway is the caller's to tell."""
        ours = str(self._place.monitors) + os.sep
        known = {vm_id for vm_id, one in process.everyone().items() if any(ours in word for word in one.arguments)}
        lives: dict[str, str] = {}
        if self._virt.connected:
            lives = self._virt.host("list", _lives, 3.0)
            known |= set(lives)
            return [self.look(vm_id, lives.get(vm_id, "absent")) for vm_id in sorted(known)]
        return [self.look(vm_id, "away") for vm_id in sorted(known)]


def refuse_outside(volumes: dict[str, dict[str, Any]], leaf: str) -> None:
    """Raises BackingOutside when a volume of the chain has a backing file that is no volume of the image."""
    volume = volumes.get(leaf)
    for _ in range(len(volumes)):
        if volume is None or not volume.get("backing"):
            return
        if volume["backing_id"] is None:
            raise errors.BackingOutside(volume_id=volume["volume_id"], backing=volume["backing"])
        volume = volumes.get(volume["backing_id"])


def _lives(connection: Any) -> dict[str, str]:
    """Our domains (by name) and libvirt's word of their life."""
    lives = {}
    for domain in connection.listAllDomains():
        vm_id = domain.UUIDString()
        if domain.name() != domainxml.name_of(vm_id):
            continue
        try:
            lives[vm_id] = LIFE.get(domain.state()[0], "running")
        except libvirt.libvirtError as fault:
            if fault.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # it ended since it was listed
                raise
    return lives


LIFE = {3: "paused", 5: "shutoff", 6: "shutoff", 7: "paused"}  # VIR_DOMAIN_PAUSED, SHUTOFF, CRASHED, PMSUSPENDED
