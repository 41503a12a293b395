"""The start of a VM with a lease: its guest stands still until it is certain that QEMU opened what counts.

    note the lease's version and the chains -> launch, standing still -> look at both again
    -> resume (libvirt takes the lease) -> the lease was taken once, by us -> forget the note

QEMU opens its files at the launch, and libvirt takes the lease only when the guest is to run. An offline merge that
another host ended in between would leave the guest on volumes that are dropped, and what it writes there would be
lost. Each taking of a lease counts its version up, so one number tells whether anybody had it since the note.
The note (`openings`) lets an agent that died, or a libvirtd that was away, go on here; the guest stands till then.
"""

from __future__ import annotations

import time
from typing import Any

from chassis import crash, logs
from contracts import errors
from services.hostagent import monitor, process
from services.hostagent.virt import NoDomain
from services.hostagent.work import Parts

WHY = "somebody else had its lease while the VM was being started, and may have changed its chains"
GONE_SECONDS = 120.0  # that a QEMU is missing before its note is forgotten: libvirt may still be launching it

Disk = dict[str, Any]  # contracts.hostagent.DiskRef
Note = dict[str, Any]  # lease (contracts.hostagent.Lockspace), offset, version, disks: [{"disk", "chain" (leaf first)}]
_log = logs.get("opening")


class Opening:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._missing: dict[str, float] = {}

    def note(self, spec: dict[str, Any], offset: int) -> None:
        """Before the launch of a VM with a lease."""
        version = self._version(spec["id"], spec["lease"])
        disks = [{"disk": one["disk"], "chain": self._chain(one["disk"])} for one in spec["disks"]]
        note = {"lease": spec["lease"], "offset": offset, "version": version, "disks": disks}
        self._parts.journal.put("openings", spec["id"], note)

    def forget(self, vm_id: str) -> None:
        """It is not to run any more, or never came up."""
        self._missing.pop(vm_id, None)
        self._parts.journal.put("openings", vm_id, None)

    def is_noted(self, vm_id: str) -> bool:
        """Whether a start is under way in which it is not certain yet that the guest may run."""
        return self._parts.journal.get("openings", vm_id) is not None

    def go_on(self, vm_id: str) -> None:
        """Let the guest of a noted start run, or see that it was right to; nothing where nothing is noted. The caller
        holds the VM. Raises ChainDiffers for a VM that opened something else than what counts, LeaseHeld, LeaseFailed,
        LeaseNotTaken, and what a chain or a lease that cannot be read is told with: then the VM is ended, for a refused
        start leaves nothing that runs. HypervisorAway and VmUnsure: the guest stands still, asking again goes on."""
        note = self._parts.journal.get("openings", vm_id)
        if note is None:
            return
        try:
            with self._parts.leasing.telling(vm_id, note["lease"]):
                self._go_on(vm_id, note)
        except (errors.HypervisorAway, errors.VmUnsure):
            raise
        except errors.Problem as problem:
            self._parts.leasing.destroy(vm_id, str(problem))
            if process.find(vm_id) is None:
                self.forget(vm_id)
            raise
        self.forget(vm_id)

    def _go_on(self, vm_id: str, note: Note) -> None:
        fresh = self._ask_monitor(vm_id, "query-status")["status"] == "prelaunch"
        if fresh and self._holds(vm_id, note):  # a libvirtd that died between taking the lease and going on
            self._ask_monitor(vm_id, "cont")
        elif fresh:
            self._refuse_changed(vm_id, note)
            crash.point("start.before_resume")
            self._resume(vm_id)
            crash.point("start.after_resume")
        self._parts.leasing.confirm(vm_id, note["lease"], note["offset"])
        # it has run, so it took its lease: if nobody else did since the note, the chain is the one that it opened
        alone = self._version(vm_id, note["lease"]) == note["version"] + 1
        if not alone and (fresh or self._writes_to_lost(vm_id, note)):
            raise self._differs(note["disks"])

    def _holds(self, vm_id: str, note: Note) -> bool:
        """Whether QEMU has the lease, and nobody had it since the note."""
        found, domain = process.find(vm_id), note["lease"]["domain"]
        if found is None:
            return False
        told = self._parts.leasing.spaces.ask("lease_held", domain, vm=vm_id, pid=found.pid)
        return bool(told["version"] == note["version"] + 1)

    def _version(self, vm_id: str, lease: dict[str, Any]) -> int:
        """How often the lease was taken, by the storage. Raises LeaseFailed."""
        return int(self._parts.leasing.spaces.ask("lease_version", lease["domain"], vm=vm_id)["version"])

    def _ask_monitor(self, vm_id: str, command: str) -> Any:
        try:
            return self._parts.monitors.ask(vm_id, command)
        except (monitor.Mute, monitor.Refused):
            raise errors.VmUnsure(vm_id=vm_id, reason="QEMU's monitor does not answer") from None

    def _refuse_changed(self, vm_id: str, note: Note) -> None:
        """Who has the lease is looked at before the chains: then nobody can be at work and not be seen."""
        self._parts.leasing.refuse_dropped(vm_id, note["lease"], note["offset"])
        self._parts.leasing.refuse_held(vm_id, note["lease"])
        if self._version(vm_id, note["lease"]) != note["version"]:
            raise self._differs(note["disks"])
        for noted in note["disks"]:
            if self._chain(noted["disk"]) != noted["chain"]:
                raise self._differs([noted])

    def _differs(self, disks: list[dict[str, Any]]) -> errors.ChainDiffers:
        return errors.ChainDiffers(disk_id=disks[0]["disk"]["disk_id"], reason=f"{WHY}; start it again")

    def _resume(self, vm_id: str) -> None:
        try:
            self._parts.virt.ask(vm_id, "resume", lambda domain: domain.resume())
        except NoDomain:
            raise errors.VmUnsure(vm_id=vm_id, reason="libvirt has lost the VM") from None

    # -- when the ask that began it is gone --

    def finish(self) -> None:
        """After a death of the agent, or while libvirtd was away; those that a start has in hand are left to it."""
        for vm_id in self._parts.journal.all("openings"):
            try:
                with self._parts.vms.hold(vm_id, "a start that was not looked at", 0.0):
                    self._finish(vm_id)
            except errors.DiskBusy:
                continue
            except errors.Problem as problem:
                _log.warning("a start that was left could not be ended well", vm_id=vm_id, reason=str(problem))

    def _finish(self, vm_id: str) -> None:
        if process.find(vm_id) is not None:
            self._missing.pop(vm_id, None)
            self.go_on(vm_id)
        elif time.monotonic() - self._missing.setdefault(vm_id, time.monotonic()) > GONE_SECONDS:
            self.forget(vm_id)

    def _writes_to_lost(self, vm_id: str, note: Note) -> bool:
        """Snapshots, merges and pauses may have come since: what counts is whether QEMU still writes to the leaf of
        then, and that is dropped (a pivot marks its top only when QEMU writes to base)."""
        return any(self._is_lost(vm_id, one["disk"], one["chain"][0]) for one in note["disks"])

    def _is_lost(self, vm_id: str, disk: Disk, leaf: str) -> bool:
        qemu = self._parts.eyes.qemu(vm_id, disk)
        if qemu.state == "unreachable":
            raise errors.VmUnsure(vm_id=vm_id, reason="QEMU's monitor does not answer")
        view = self._parts.storage.volumes(disk["domain"], disk["disk_id"])
        dropped = any(one["volume_id"] == leaf and one["legality"] == "illegal" for one in view["volumes"])
        return dropped and qemu.leaf == leaf

    def _chain(self, disk: Disk) -> list[str]:
        """What a QEMU that is started now opens, leaf first."""
        view = self._parts.storage.volumes(disk["domain"], disk["disk_id"])
        below = {volume["volume_id"]: volume["backing_id"] for volume in view["volumes"]}
        found: list[str] = []
        at: str | None = self._parts.storage.leaf_of(view)
        while at in below and at not in found:
            found.append(str(at))
            at = below[str(at)]
        return found
