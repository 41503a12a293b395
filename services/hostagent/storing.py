"""Asks that change volumes on the storage: made under the disk's lock, and only where no QEMU has a say in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import process, views
from services.hostagent.copies import Copies, refuse_plugged
from services.hostagent.record import Record, refuse_written
from services.hostagent.work import TURN_SECONDS, Parts, Request


class Storing:
    def __init__(self, parts: Parts, record: Record, copies: Copies) -> None:
        self._parts, self._record, self._copies = parts, record, copies

    def create_volume(self, request: Request) -> dict[str, Any]:
        disk_id = request["disk"]["disk_id"]
        # the same lock as a commit's scan: no child appears between its look and its ask
        with self._parts.disks.hold(disk_id, f"volume {request['volume_id']}", TURN_SECONDS):
            return self._parts.storage.create_volume(
                request["disk"]["domain"],
                disk_id,
                request["volume_id"],
                request["parent_id"],
                request["capacity"],
                request["format"],
                request["description"],
                deadline=50.0,
            )

    def create_thin_disk(self, request: Request) -> dict[str, Any]:
        disk = request["disk"]
        with self._parts.disks.hold(disk["disk_id"], f"volume {request['volume_id']}", TURN_SECONDS):
            return self._parts.storage.create_thin(
                disk["domain"],
                disk["disk_id"],
                request["volume_id"],
                request["template_disk_id"],
                request["template_volume_id"],
                deadline=50.0,
            )

    def delete_domain(self, request: Request) -> dict[str, Any]:
        self._parts.leasing.spaces.leave_deleted(request["domain"])
        self._parts.storage.delete_domain(request["domain"], deadline=25.0)
        return {}

    def delete_disk(self, request: Request) -> dict[str, Any]:
        disk_id = request["disk"]["disk_id"]
        with self._parts.disks.hold(disk_id, "its deletion", TURN_SECONDS):
            refuse_plugged(self._parts, request["disk"])
            self._copies.stop(request["disk"])
            self._parts.storage.delete_image(request["disk"]["domain"], disk_id, deadline=100.0)
        return {}

    def record_merge(self, request: Request) -> dict[str, Any]:
        # a cancel does not stop it: it writes down what has happened already
        with self._parts.turn(request, fenced=False):
            self._refuse_open(request, [views.ends_of(request).gone, *request["between"]])
            self._record.write(request)
        return {}

    def record_chain(self, request: Request) -> dict[str, Any]:
        disk = request["disk"]
        with self._parts.turn(request):
            live = self._refuse_other_chain(request)
            args = (disk["domain"], disk["disk_id"], request["chain"], request["unused"], live)
            # so long because the tables of all that left the chain are compared (docs/adr/0028)
            self._parts.storage.record_chain(*args, deadline=100.0)
            crash.point("chain.after_ask")
        return {}

    def _refuse_other_chain(self, request: Request) -> bool:
        """Whether a QEMU runs on this very chain; with none it must not be open anywhere here."""
        vm_id, disk = request["vm_id"], request["disk"]
        if vm_id is None or process.find(vm_id) is None:
            refuse_plugged(self._parts, disk)
            self._record.put_back(disk)  # whoever took such a header for the truth is refused by the next look
            return False
        self._parts.virt.refuse_hung(vm_id)  # an old snapshotCreateXML could still switch to what is marked now
        qemu, _ = self._parts.sure(request)
        if qemu.job is not None:
            raise errors.ForeignJob(disk_id=disk["disk_id"], job=qemu.job.id)
        volumes = self._parts.storage.volumes(disk["domain"], disk["disk_id"])["volumes"]
        borrowed = {one["volume_id"] for one in volumes if one["template_disk_id"] not in (None, disk["disk_id"])}
        if request["chain"] not in (list(qemu.ids), [id_ for id_ in qemu.ids if id_ not in borrowed]):
            raise errors.ChainDiffers(disk_id=disk["disk_id"], reason="QEMU's chain has changed meanwhile")
        for layer in qemu.layers[1:]:
            refuse_written(layer)
        self._record.flush(vm_id, qemu)  # after a pull that nobody recorded the leaf has to hold what is dropped
        return True

    def discard(self, request: Request) -> dict[str, Any]:
        with self._parts.turn(request, fenced=False):  # what it deletes it proves to be unused
            self._refuse_open(request, [request["volume_id"], *request["below"]])
            self._parts.storage.discard(
                request["disk"]["domain"],
                request["disk"]["disk_id"],
                request["volume_id"],
                request["below"],
                stands_on=self._below_unused(request),
                deadline=110.0,
            )
            crash.point("discard.after_ask")
        return {}

    def _below_unused(self, request: Request) -> str | None:
        """What a living QEMU writes to, if the volume is a new one that stands on it: the storage then deletes it
        though it counts, if nothing was written into it. With the VM down nobody can say that none switched to it.
        Raises HypervisorAway while a call of this VM hangs, which may be the one that switches."""
        vm_id, disk, volume_id = request.get("vm_id"), request["disk"], request["volume_id"]
        if vm_id is None or process.find(vm_id) is None:
            return None
        qemu, _ = self._sure_or_gone(vm_id, disk)
        view = self._parts.storage.volumes(disk["domain"], disk["disk_id"])
        new = next((one for one in view["volumes"] if one["volume_id"] == volume_id), None)
        if new is None or new["legality"] != "legal" or not qemu.alive or qemu.job is not None:
            return None
        if qemu.leaf != new["backing_id"]:
            return None
        self._parts.virt.refuse_hung(vm_id)
        return qemu.leaf

    def _refuse_open(self, request: Request, volume_ids: Sequence[str]) -> None:
        """QEMU's own word comes before the storage's: a volume in its chain stays. Raises VolumeInUse, VmUnsure."""
        vm_id, disk = request.get("vm_id"), request["disk"]
        if vm_id is None or process.find(vm_id) is None:
            return
        qemu, _ = self._sure_or_gone(vm_id, disk)
        open_ = next((volume_id for volume_id in volume_ids if volume_id in qemu.ids), None)
        if open_ is not None:
            raise errors.VolumeInUse(volume_id=open_, by=f"VM {vm_id}, which runs on it")

    def _sure_or_gone(self, vm_id: str, disk: dict[str, Any]) -> tuple[views.Qemu, views.Libvirt]:
        try:
            return self._parts.sure({"vm_id": vm_id, "disk": disk})
        except (errors.VmStopped, errors.NotFound):
            return views.Qemu("absent"), views.Libvirt("absent")
