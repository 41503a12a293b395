"""What a VM with a lease opened when it was started, looked at again once it holds the lease.

QEMU opens its files before libvirt takes the lease. An offline merge that another host ended in that moment has left it
on volumes that are dropped, and what its guest writes there would be lost. With the lease held nothing changes more.
The start is journalled (`starts`), so that an agent that dies in between looks when it is back.
"""

from __future__ import annotations

from typing import Any

from chassis import logs
from contracts import errors
from services.hostagent import process
from services.hostagent.work import Parts

WHY = "a merge ended on another host while the VM was being started"

Disk = dict[str, Any]  # contracts.hostagent.DiskRef
_log = logs.get("opening")


class Opening:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def note(self, spec: dict[str, Any]) -> None:
        """Before the launch of a VM with a lease."""
        disks = [one["disk"] for one in spec["disks"]]
        noted = [{"disk": disk, "chain": self._chain(disk)} for disk in disks]
        self._parts.journal.put("starts", spec["id"], noted)

    def check(self, vm_id: str) -> None:
        """Once it holds the lease. Raises ChainDiffers for one that opened another chain than there is, and what a
        chain that cannot be read is told with; then the VM is ended: a refused start leaves nothing that runs."""
        try:
            for noted in self._parts.journal.get("starts", vm_id) or ():
                if self._chain(noted["disk"]) != noted["chain"]:
                    raise errors.ChainDiffers(disk_id=noted["disk"]["disk_id"], reason=f"{WHY}; start it again")
        except errors.Problem as problem:
            self._parts.leasing.destroy(vm_id, str(problem))
            raise
        self._parts.journal.put("starts", vm_id, None)

    def finish(self) -> None:
        """After a death of the agent. Snapshots and merges may have come since: what counts is whether QEMU still
        writes to the leaf of then, and that is dropped (a pivot marks its top only when QEMU writes to base)."""
        for vm_id, noted in self._parts.journal.all("starts").items():
            try:
                with self._parts.vms.hold(vm_id, "a start that was not looked at", 20.0):
                    self._finish(vm_id, noted)
            except errors.Problem as problem:
                _log.warning("whether a VM was started from what is dropped is unknown", vm_id=vm_id, why=str(problem))

    def _finish(self, vm_id: str, noted: list[dict[str, Any]]) -> None:
        if process.find(vm_id) is not None and any(self._is_lost(vm_id, one["disk"], one["chain"][0]) for one in noted):
            self._parts.leasing.destroy(vm_id, WHY)
        self._parts.journal.put("starts", vm_id, None)

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
