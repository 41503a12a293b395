"""Writing down that a merge is done, when QEMU says so; and undoing one that a death left without that record.

A merge without a pivot (internal, or a pull) is believed because of its record alone (merging.py, pulling.py,
docs/adr/0013). So the record is written by the first ask that finds the job ended, whichever that is, and needs a QEMU
that lives.
"""

from __future__ import annotations

from chassis import crash, logs
from contracts import errors
from services.hostagent import blockgraph, monitor, process, views
from services.hostagent.work import Parts, Request

_log = logs.get("record")


class Record:
    """Every method runs within the turn of its request."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def write(self, request: Request) -> None:
        """Raises JobFailed for a merge without a pivot that was not recorded while its QEMU lived."""
        disk, ends = request["disk"], views.ends_of(request)
        write = self._parts.storage.record_pull if ends.pull else self._parts.storage.record_merge
        write(
            disk["domain"],
            disk["disk_id"],
            ends.base,
            ends.top,
            request["below_id"] if ends.pull else ends.child,
            between=request.get("between", ()),
            concluded=(ends.pull or ends.child is not None) and self._concluded(request),
            deadline=25.0,
        )
        crash.point("record.after_ask")

    def settle(self, request: Request) -> None:
        """After a job is gone: what QEMU has done without a pivot is recorded, what died with it is put back, also that
        of a pull which was to go on as an offline commit."""
        ends = views.ends_of(request)
        qemu = self._parts.eyes.qemu(request["vm_id"], request["disk"])
        if qemu.state == "absent":
            self.put_back(request["disk"])
        elif (ends.child or ends.pull) and merged(qemu, ends):
            self.write({**request, **self._others(request)})

    def put_back(self, disk: Request) -> bool:
        """Whether there was anything. No QEMU of ours has the disk; VolumeInUse when one elsewhere has."""
        back = self._parts.storage.put_back(disk["domain"], disk["disk_id"])
        for volume_id, top in back.items():
            said = {"disk_id": disk["disk_id"], "volume_id": volume_id, "stands_on": top}
            _log.warning("a merge was not recorded: undone", **said)
        return bool(back)

    def _others(self, request: Request) -> Request:
        """`between`, the volumes from top down to base, without these, and for a pull `below_id`: QEMU left the headers
        of all that went as they were, and top's record is changed last."""
        view = self._parts.storage.volumes(request["disk"]["domain"], request["disk"]["disk_id"])
        below = {one["volume_id"]: one["backing_id"] for one in view["volumes"]}
        records = {one["volume_id"]: one["parent_id"] for one in view["volumes"]}
        top, base = request["top_id"], request["base_id"]
        found: list[str] = []
        at = (records if request.get("pull") else below).get(top)
        while at is not None and at != base and at not in found:
            found.append(at)
            at = below.get(at)
        return {"between": found if at is not None else [], "below_id": below.get(base if base in below else top)}

    def _concluded(self, request: Request) -> bool:
        """Whether the living QEMU has ended the job, and written out what the tables of what stays say. After a commit
        it does that when it opens base for reading only again, which is the last thing that it does. After a pull it
        goes on writing to top, and has to be told."""
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
        if request.get("pull"):
            if qemu.job is not None:
                raise errors.ForeignJob(disk_id=disk["disk_id"], job=qemu.job.id)
            crash.point("record.before_flush")
            self.flush(vm_id, qemu)
            crash.point("record.after_flush")
            return True
        base = qemu.layers[qemu.ids.index(request["base_id"])]
        if base.written and qemu.job is not None:
            raise errors.ForeignJob(disk_id=disk["disk_id"], job=qemu.job.id)
        refuse_written(base)
        return True

    def flush(self, vm_id: str, qemu: views.Qemu) -> None:
        """Make QEMU write out the leaf's tables, as a guest's flush does. It answers the same when that fails: what is
        believed is what the storage then shows (pulling.py). Raises VmUnsure."""
        words = f"qemu-io {qemu.layers[0].node} flush"
        try:
            self._parts.monitors.ask(vm_id, "human-monitor-command", {"command-line": words}, seconds=15.0)
        except (monitor.Mute, monitor.Refused) as fault:
            raise errors.VmUnsure(vm_id=vm_id, reason=f"QEMU does not flush its disk: {fault}") from None


def refuse_written(layer: blockgraph.Layer) -> None:
    """A volume below the leaf that QEMU may still write to is not whole on the storage. Raises StorageFailed."""
    if layer.written:
        reason = "QEMU still has it open for writing after the commit; perhaps it could not be flushed"
        raise errors.StorageFailed(action="recording a merge", path=layer.path, reason=reason)


def merged(qemu: views.Qemu, ends: views.Ends) -> bool:
    """Whether a merge without a pivot is done for a living QEMU."""
    return qemu.alive and ends.done(qemu.ids) and qemu.above(ends.stays) == ends.child
