"""Looking at a VM and its disks: QEMU first, then the storage, then libvirt. No side effect on any of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import libvirt

from contracts import errors
from services.hostagent import domainxml, layout, livexml, monitor, pools, process, views
from services.hostagent.journal import Journal
from services.hostagent.monitor import Monitors
from services.hostagent.place import Place
from services.hostagent.storage import Storage
from services.hostagent.virt import NoDomain, Virt

AGAIN = 0.1  # seconds between looks while QEMU and libvirt do not agree yet
USERS_SECONDS = 5.0  # for looking at all QEMUs of the host
PATH_SECONDS = 2.0  # for resolving a foreign path; a dead mount makes it a foreign file

_STATES = {
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
    libvirt.VIR_DOMAIN_CRASHED: "shutoff",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
}

Disk = dict[str, Any]  # contracts.hostagent.DiskRef


class Eyes:
    def __init__(self, place: Place, monitors: Monitors, virt: Virt, storage: Storage, journal: Journal) -> None:
        self._place = place
        self._monitors, self._virt, self._storage, self._journal = monitors, virt, storage, journal
        self.offline: Callable[[str], dict[str, Any] | None] = lambda _: None  # merges without a QEMU: offline.py
        self._paths = pools.Pool("paths", 4)

    # -- one side at a time --

    def qemu(self, vm_id: str | None, disk: Disk) -> views.Qemu:
        found = process.find(vm_id) if vm_id else None
        if found is None or vm_id is None:
            return views.Qemu("absent")
        try:
            view = self._monitors.view(vm_id)
        except (monitor.Mute, monitor.Refused):
            # a process that ends takes its monitor with it: then it is absent, not mute
            return views.Qemu("unreachable", found) if found.alive() else views.Qemu("absent")
        layers = view.blocks.chain(domainxml.alias(disk["disk_id"])) or ()
        return views.Qemu(
            state="running" if view.running else "paused",
            process=found,
            status=view.status,
            layers=layers,
            ids=self._ids(disk, tuple(layer.path for layer in layers)),
            job=view.blocks.job(layers),
            blocks=view.blocks,
        )

    def glance(self, vm_id: str, disk: Disk) -> views.Qemu:
        """What QEMU writes to and whether the guest runs, and nothing else: for a guest that stands still. Who asks
        knows that the process lives."""
        try:
            view = self._monitors.glance(vm_id)
        except (monitor.Mute, monitor.Refused):
            return views.Qemu("unreachable")
        layers = view.blocks.chain(domainxml.alias(disk["disk_id"])) or ()
        ids = self._ids(disk, tuple(layer.path for layer in layers))
        return views.Qemu("running" if view.running else "paused", status=view.status, layers=layers, ids=ids)

    def user(self, disk: Disk) -> str | None:
        """A VM whose QEMU here has the disk plugged. All are asked at once: who asks holds the disk, and mute ones must
        not add up. One that does not answer is passed over: what it has open, the image lock on the storage tells."""
        alias = domainxml.alias(disk["disk_id"])
        seen = self._monitors.glances(process.everyone(), USERS_SECONDS)
        return next((vm_id for vm_id, view in seen.items() if view.blocks.chain(alias)), None)

    def libvirt(self, vm_id: str | None, disk: Disk) -> views.Libvirt:
        if vm_id is None:
            return views.Libvirt("absent")
        try:
            state, xml, job = self._virt.look(vm_id, "look", lambda domain: _domain(domain, disk["disk_id"]))
        except NoDomain:
            return views.Libvirt("absent")
        except (errors.HypervisorAway, errors.HypervisorRefused):
            return views.Libvirt("away")
        live = livexml.read(xml)
        there = live.disk(disk["disk_id"])
        if there is None or state == "shutoff":
            return views.Libvirt(state, agent=live.agent_connected)
        ids = self._ids(disk, there.chain)
        mirror_id = self._ids(disk, (there.mirror,))[0] if there.mirror else None
        return views.Libvirt(
            state,
            there.target,
            there.chain,
            ids,
            mirror=there.mirror is not None,
            mirror_ready=there.mirror_ready,
            job=job,
            agent=live.agent_connected,
            mirror_id=mirror_id,
        )

    # -- both --

    def both(self, vm_id: str | None, disk: Disk) -> tuple[views.Qemu, views.Libvirt, str | None]:
        """QEMU's and libvirt's view, and how they differ. libvirt's XML changes a moment after QEMU's chain does,
        so a difference counts only when it stays (`agree_seconds`)."""
        limit = time.monotonic() + self._place.agree_seconds
        while True:
            qemu, libvirt_ = self.qemu(vm_id, disk), self.libvirt(vm_id, disk)
            unsure = views.difference(qemu, libvirt_)
            lasting = qemu.state == "unreachable" or libvirt_.state == "away"
            if unsure is None or lasting or time.monotonic() > limit:
                return qemu, libvirt_, unsure
            time.sleep(AGAIN)

    def sure(self, vm_id: str, disk: Disk) -> tuple[views.Qemu, views.Libvirt]:
        """Both views of a running VM. Raises VmStopped, HypervisorAway, VmUnsure, or NotFound: no such disk there."""
        qemu, libvirt_, unsure = self.both(vm_id, disk)
        if not qemu.alive and not libvirt_.up:
            raise errors.VmStopped(vm_id=vm_id, action="its disk was worked on")
        if libvirt_.state == "away":
            raise self._virt.away(self._virt.fault or "it does not answer")
        if unsure:
            raise errors.VmUnsure(vm_id=vm_id, reason=unsure)
        if not qemu.ids:
            raise errors.NotFound(kind="disk", id=disk["disk_id"])
        return qemu, libvirt_

    def disk(self, vm_id: str | None, disk: Disk) -> dict[str, Any]:
        """contracts.hostagent.DiskFacts."""
        # before the storage: what ended since shows there
        offline = self.offline(disk["disk_id"])
        qemu, libvirt_, unsure = self.both(vm_id, disk)
        pause = self._journal.get("pauses", vm_id) if vm_id else None
        return {
            "vm_id": vm_id,
            "disk_id": disk["disk_id"],
            "qemu": views.qemu_facts(qemu),
            "libvirt": views.libvirt_facts(libvirt_),
            "storage": self._storage.volumes(disk["domain"], disk["disk_id"]),
            "unsure": unsure,
            "paused_by_pivot": bool(pause) and qemu.alive,
            "offline": offline,
        }

    def life(self, vm_id: str) -> str:
        """libvirt's state of the VM: absent, running, paused, shutoff, away."""
        try:
            return self._virt.look(vm_id, "state", lambda domain: _STATES.get(domain.state()[0], "running"))
        except NoDomain:
            return "absent"
        except (errors.HypervisorAway, errors.HypervisorRefused):
            return "away"

    # -- names --

    def _ids(self, disk: Disk, paths: tuple[str, ...]) -> tuple[str | None, ...]:
        folder = layout.Place(disk["domain"]["path"], disk["domain"]["id"]).image(disk["disk_id"])
        return tuple(self._id(path, folder) for path in paths)

    def _id(self, path: str, folder: str) -> str | None:
        name = os.path.basename(path)
        if not layout.is_uuid(name):
            return None
        if os.path.normpath(os.path.dirname(path)) == os.path.normpath(folder):
            return name
        try:  # through a symbolic link or a second mount: ask the file system
            same = self._paths.run("samefile", PATH_SECONDS, os.path.samefile, path, os.path.join(folder, name))
        except (OSError, pools.TooSlow):
            return None
        return name if same else None


def _domain(domain: Any, disk_id: str) -> tuple[str, str, dict[str, Any] | None]:
    state = _STATES.get(domain.state()[0], "running")
    xml = domain.XMLDesc(0)
    there = livexml.read(xml).disk(disk_id)
    job = None
    if there is not None and state != "shutoff":
        with contextlib.suppress(libvirt.libvirtError):  # it waits for another job of libvirt's, or has none to tell
            job = domain.blockJobInfo(there.target, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    return state, xml, job
