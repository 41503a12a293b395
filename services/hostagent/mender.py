"""Repair by itself: after every new connection to libvirt, each VM of ours whose QEMU and libvirt differ is mended.

It runs after the pauses' keeper had its turn on the VM's lock, and gives a difference time to go away by itself.
"""

from __future__ import annotations

import threading
from typing import Any

from chassis import logs
from contracts import errors
from services.hostagent import domainxml, livexml
from services.hostagent.virt import NoDomain
from services.hostagent.vms import Vms
from services.hostagent.work import Parts

_log = logs.get("mender")


class Mender:
    def __init__(self, parts: Parts, vms: Vms) -> None:
        self._parts, self._vms = parts, vms
        self._wake = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="mender", daemon=True).start()

    def wake(self) -> None:
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                everyone = self._vms.everyone()
            except errors.Problem as problem:
                _log.warning("VMs could not be compared with libvirt", reason=str(problem))
                continue
            for facts in everyone:
                self._look_after_one(facts["vm_id"])

    def _look_after_one(self, vm_id: str) -> None:
        """One that cannot be mended must not keep the others waiting."""
        try:
            self._look_after(vm_id)
        except (errors.Problem, NoDomain) as problem:
            _log.warning("a VM could not be compared with libvirt", vm_id=vm_id, reason=str(problem))
        except Exception:
            _log.exception("a VM could not be compared with libvirt", vm_id=vm_id)

    def _look_after(self, vm_id: str) -> None:
        with self._parts.vms.hold(vm_id, "the repair of libvirt", 60.0):
            reason = self._reason(vm_id)
            if reason and self._parts.virt.connected:
                _log.warning("QEMU and libvirt differ", vm_id=vm_id, reason=reason)
                self._parts.repair.mend(vm_id)

    def _reason(self, vm_id: str) -> str | None:
        """How they differ about the VM or about one of its disks, if that lasts."""
        facts = self._vms.settled_look(vm_id)
        if facts["state"] == "unsure":
            return str(facts["reason"])
        if facts["state"] == "down":
            return None
        for disk in self._disks(vm_id):
            _, _, unsure = self._parts.eyes.both(vm_id, disk)
            if unsure and self._parts.virt.connected:
                return unsure
        return None

    def _disks(self, vm_id: str) -> list[dict[str, Any]]:
        """What libvirt says is plugged; folders do not matter here: both sides' paths are compared as they are."""
        xml = self._parts.virt.look(vm_id, "look", lambda domain: domain.XMLDesc(0))
        ids = [domainxml.disk_of(disk.alias) for disk in livexml.read(xml).disks]
        nowhere = {"id": "00000000-0000-0000-0000-000000000000", "path": "/"}
        return [{"disk_id": disk_id, "domain": nowhere} for disk_id in ids if disk_id]
