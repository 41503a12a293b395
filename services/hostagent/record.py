"""Writing down that a merge is done, when QEMU says so; and undoing one that a death left without that record.

An internal merge is believed because of its record alone (merging.py, docs/adr/0013). So the record is written by the
first ask that finds the job ended, whichever that is, and needs a QEMU that lives.
"""

from __future__ import annotations

from chassis import crash, logs
from contracts import errors
from services.hostagent import blockgraph, process, views
from services.hostagent.work import Parts, Request

_log = logs.get("record")


class Record:
    """Every method runs within the turn of its request."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def write(self, request: Request) -> None:
        """Raises JobFailed for an internal merge that was not recorded while its QEMU lived."""
        disk = request["disk"]
        self._parts.storage.record_merge(
            disk["domain"],
            disk["disk_id"],
            request["base_id"],
            request["top_id"],
            request["child_id"],
            between=request.get("between", ()),
            concluded=request["child_id"] is not None and self._concluded(request),
            deadline=25.0,
        )
        crash.point("record.after_ask")

    def settle(self, request: Request) -> None:
        """After the job of an internal merge is gone: what QEMU has done is recorded, what died with it is put back."""
        if request["child_id"] is None:
            return
        qemu = self._parts.eyes.qemu(request["vm_id"], request["disk"])
        if qemu.state == "absent":
            self.put_back(request["disk"])
        elif merged(qemu, views.ends_of(request)):
            self.write({**request, "between": self._between(request)})

    def put_back(self, disk: Request) -> bool:
        """Whether there was anything. No QEMU of ours has the disk; VolumeInUse when one elsewhere has."""
        back = self._parts.storage.put_back(disk["domain"], disk["disk_id"])
        for volume_id, top in back.items():
            said = {"disk_id": disk["disk_id"], "volume_id": volume_id, "stands_on": top}
            _log.warning("a merge was not recorded: undone", **said)
        return bool(back)

    def _between(self, request: Request) -> list[str]:
        """The volumes from top down to base, without these: QEMU left their headers as they were."""
        view = self._parts.storage.volumes(request["disk"]["domain"], request["disk"]["disk_id"])
        below = {one["volume_id"]: one["backing_id"] for one in view["volumes"]}
        found: list[str] = []
        at = below.get(request["top_id"])
        while at is not None and at != request["base_id"] and at not in found:
            found.append(at)
            at = below.get(at)
        return found if at is not None else []

    def _concluded(self, request: Request) -> bool:
        """Whether the living QEMU has ended the job, and written out what base's tables say: it does that when it opens
        base for reading only again, which is the last thing that a commit does."""
        vm_id, disk = request["vm_id"], request["disk"]
        if process.find(vm_id) is None:
            return False
        try:
            qemu, _ = self._parts.sure(request)
        except errors.VmStopped:
            return False
        if not merged(qemu, views.ends_of(request)):
            reason = f"QEMU's chain is {', '.join(str(id_) for id_ in qemu.ids)}: the merge is not done"
            raise errors.ChainDiffers(disk_id=disk["disk_id"], reason=reason)
        base = qemu.layers[qemu.ids.index(request["base_id"])]
        if base.written and qemu.job is not None:
            raise errors.ForeignJob(disk_id=disk["disk_id"], job=qemu.job.id)
        refuse_written(base)
        return True


def refuse_written(layer: blockgraph.Layer) -> None:
    """A volume below the leaf that QEMU may still write to is not whole on the storage. Raises StorageFailed."""
    if layer.written:
        reason = "QEMU still has it open for writing after the commit; perhaps it could not be flushed"
        raise errors.StorageFailed(action="recording a merge", path=layer.path, reason=reason)


def merged(qemu: views.Qemu, ends: views.Ends) -> bool:
    """Whether an internal merge is done for a living QEMU."""
    base, top, child = ends
    return qemu.alive and top not in qemu.ids and base in qemu.ids and qemu.above(base) == child
