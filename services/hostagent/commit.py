"""Begin, adopt, slow down and cancel the block job of a merge, a commit or a pull. Every ask looks first and may be
repeated."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import libvirt

from chassis import crash
from contracts import errors
from services.hostagent import claims, layout, monitor, naming, views
from services.hostagent.jobs import Jobs
from services.hostagent.offline import Offline
from services.hostagent.record import Record
from services.hostagent.virt import NoDomain
from services.hostagent.work import Parts, Request

CANCEL_SECONDS = 20.0
# QEMU's own words when another process has the volume, or one above it, open
_LOCKED = re.compile(r'Failed to get (shared )?"[a-z ]+" lock')
_READER = "another process that has it open, itself or below a volume of its own (a backup, a qemu-img)"
_PULL = libvirt.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES
_FLAGS = libvirt.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES


class Commit:
    def __init__(self, parts: Parts, jobs: Jobs, record: Record, offline: Offline) -> None:
        self._parts, self._jobs, self._record, self._offline = parts, jobs, record, offline

    def start(self, request: Request) -> dict[str, Any]:
        """Begin the job, or find it begun or done. One without a pivot that is done is recorded here: nothing else than
        its record is believed once QEMU is dead."""
        with self._parts.turn(request):
            qemu, libvirt_ = self._parts.sure(request)
            ends = views.ends_of(request)
            if ends.done(qemu.ids):
                if ends.child or ends.pull:
                    self._record.write(request)
                return {}  # merged before
            self._refuse_other_chain(request, qemu)
            if qemu.job is not None:
                self._adopt(request, qemu, libvirt_)
                return {}
            qemu.refuse_beside(request["disk"]["disk_id"], pull=views.ends_of(request).pull)
            self._refuse_trouble(request, qemu)
            # the scans took their time: a cancel that came meanwhile must find nothing begun after it
            claims.take(self._parts.journal, request["disk"]["disk_id"], request["claim"])
            self._jobs.begin(request, libvirt_.target)
            crash.point("commit.before_ask")
            self._ask(request, libvirt_)
            crash.point("commit.after_begin")
            self._jobs.wake()
        return {}

    def set_bandwidth(self, request: Request) -> dict[str, Any]:
        """Change the limit of the running job that this flow began; without a job there is nothing to limit."""
        with self._parts.turn(request):
            if self._offline.limit(request):
                return {}
            try:
                qemu, libvirt_ = self._parts.sure(request)
            except errors.VmStopped:
                return {}
            if qemu.job is not None:
                own = self._jobs.of(request)
                if own is None or not qemu.works_on(views.ends_of(own)):
                    raise errors.ForeignJob(disk_id=request["disk"]["disk_id"], job=qemu.job.id)
                self._speed(request, libvirt_.target)
        return {}

    def cancel(self, request: Request) -> dict[str, Any]:
        """Refuse later asks of this flow up to this claim, and end the job that has the request's ends, if it names
        any, without a pivot. No job: done."""
        claims.cancel(self._parts.journal, request["disk"]["disk_id"], request["claim"])
        with self._parts.turn(request, fenced=False):
            # one that was asked for before, and hangs, may still come through
            self._parts.virt.refuse_hung(request["vm_id"])
            if request["base_id"] and request["top_id"]:
                self._end(request)
        return {}

    def _end(self, request: Request) -> None:
        vm_id, disk, ends = request["vm_id"], request["disk"], views.ends_of(request)
        self._offline.cancel(request)
        qemu = self._parts.eyes.qemu(vm_id, disk)
        if qemu.state == "unreachable":
            raise errors.VmUnsure(vm_id=vm_id, reason="QEMU's monitor does not answer")
        if qemu.job is not None:
            self._jobs.refuse_newer(disk["disk_id"], request["claim"])
            if not qemu.works_on(ends):
                raise errors.ForeignJob(disk_id=disk["disk_id"], job=qemu.job.id)
            self._jobs.cancelled(disk["disk_id"])
            abort(self._parts, vm_id, disk, ends)
        self._jobs.wake()
        self._record.settle(request)

    # -- refusals --

    def _refuse_other_chain(self, request: Request, qemu: views.Qemu) -> None:
        (base, top, child, pull), ids = views.ends_of(request), list(qemu.ids)
        reason = None
        if base not in ids or top not in ids or ids.index(top) >= ids.index(base):
            reason = f"QEMU does not have {top} above {base}"
        elif ids[ids.index(top) + 1 : ids.index(base)] != request["between"]:
            reason = f"QEMU has {ids[ids.index(top) + 1 : ids.index(base)]} between {top} and {base}"
        elif qemu.above(top) != child:
            reason = f"QEMU has {qemu.above(top) or 'nothing'} above {top}, not {child or 'nothing'}"
        elif pull and (found := _below(ids, base)) != request["below_id"]:
            reason = f"QEMU has {found or 'nothing'} below {base}, not {request['below_id'] or 'nothing'}"
        if reason:
            raise errors.ChainDiffers(disk_id=request["disk"]["disk_id"], reason=reason)

    def _adopt(self, request: Request, qemu: views.Qemu, libvirt_: views.Libvirt) -> None:
        """A job that runs is ours only if its base, its top and the volume above it are, for QEMU and in the XML."""
        ends = views.ends_of(request)
        if qemu.job is None or not qemu.works_on(ends) or libvirt_.denies(ends):
            raise errors.ForeignJob(disk_id=request["disk"]["disk_id"], job=qemu.job.id if qemu.job else "")
        self._jobs.begin(request, libvirt_.target)
        if qemu.job.speed != request["bandwidth"]:
            self._speed(request, libvirt_.target)
        self._jobs.wake()

    def _refuse_trouble(self, request: Request, qemu: views.Qemu) -> None:
        disk, ids = request["disk"], list(qemu.ids)
        folder = layout.domain_path(disk["domain"]["path"], disk["domain"]["id"])
        for layer, id_ in zip(qemu.layers, ids, strict=True):
            # a template's volume lies in another image of the same domain: that is no foreign file
            if id_ is None and not os.path.realpath(layer.path).startswith(os.path.realpath(folder) + os.sep):
                raise errors.BackingOutside(volume_id=str(ids[0]), backing=layer.path)
        view = self._parts.storage.volumes(disk["domain"], disk["disk_id"])
        refuse_template(request, view["volumes"])
        headers = {volume["volume_id"]: volume.get("backing") or "" for volume in view["volumes"]}
        first, last = ids.index(request["top_id"]), ids.index(request["base_id"])
        # the names by which each volume down to the one that the header will name is called by the one above it
        carriers: Sequence[str | None] = ids[first - 1 : last] if request["child_id"] else ()
        if request.get("pull") and request["below_id"]:
            carriers = ids[first : last + 1]
        length = len(os.fsencode(naming.written([headers.get(str(id_), "") for id_ in carriers])))
        if length > naming.MAX_BYTES:
            raise errors.BackingTooLong(bytes=length)
        self._refuse_shared(disk, {str(ids[at]): ids[at - 1] if at else None for at in range(first, last + 1)})

    def _refuse_shared(self, disk: dict[str, Any], above: dict[str, str | None]) -> None:
        """Raises VolumeInUse when anybody but the volume above it in this chain refers to one of these volumes."""
        found = self._parts.storage.referrers(disk["domain"], disk["disk_id"], list(above), deadline=60.0)
        for volume_id, by in found.items():
            own = f"volume {above[volume_id]} of disk {disk['disk_id']}"
            others = [one for one in by if one not in (own, f"the metadata of {own}")]
            if others:
                raise errors.VolumeInUse(volume_id=volume_id, by=", ".join(sorted(others)[:5]))

    # -- asks --

    def _ask(self, request: Request, libvirt_: views.Libvirt) -> None:
        what, begin = _call(request, libvirt_)
        pull = views.ends_of(request).pull
        kept = self._parts.monitors.before_a_pull(request["vm_id"]) if pull else contextlib.nullcontext()
        try:
            with kept:
                self._parts.virt.ask(request["vm_id"], what, begin, point="commit.after_ask")
        except (NoDomain, monitor.Mute) as lost:
            raise errors.VmUnsure(vm_id=request["vm_id"], reason=str(lost)) from None
        except errors.HypervisorRefused as refused:
            # "a job runs already": a twin of this very ask may have been faster; QEMU knows
            if not self._parts.eyes.qemu(request["vm_id"], request["disk"]).works_on(views.ends_of(request)):
                self._jobs.drop(request["disk"]["disk_id"])
                if _LOCKED.search(str(refused.fields["reason"])):
                    raise errors.VolumeInUse(volume_id=request["base_id"], by=_READER) from refused
                raise

    def _speed(self, request: Request, target: str) -> None:
        flag = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        speed = request["bandwidth"]
        try:
            self._parts.virt.ask(
                request["vm_id"], "blockJobSetSpeed", lambda domain: domain.blockJobSetSpeed(target, speed, flag)
            )
        except NoDomain as lost:
            raise errors.VmUnsure(vm_id=request["vm_id"], reason=str(lost)) from None


def _below(ids: Sequence[str | None], base: str) -> str | None:
    """The volume that base stands on; "a foreign file" where that is none of ours."""
    after = list(ids[ids.index(base) + 1 :])
    return (after[0] or "a foreign file") if after else None


def _call(request: Request, libvirt_: views.Libvirt) -> tuple[str, Callable[[Any], None]]:
    """The call of libvirt that begins the job, and its name."""
    paths = dict(zip(libvirt_.ids, libvirt_.paths, strict=True))
    target, bandwidth = libvirt_.target, request["bandwidth"]
    if request.get("pull"):
        below = paths[request["below_id"]] if request["below_id"] else None
        how = _PULL | (libvirt.VIR_DOMAIN_BLOCK_REBASE_RELATIVE if below else 0)
        return "blockRebase", lambda domain: domain.blockRebase(target, below, bandwidth, how)
    flags = _FLAGS | (0 if request["child_id"] else libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    base, top = paths[request["base_id"]], paths[request["top_id"]]
    return "blockCommit", lambda domain: domain.blockCommit(target, base, top, bandwidth, flags)


def abort(parts: Parts, vm_id: str, disk: dict[str, Any], ends: views.Ends) -> None:
    """Cancel the job with these ends and wait until QEMU has none such. Raises VmUnsure, HypervisorAway,
    HypervisorRefused."""
    _, libvirt_ = parts.sure({"vm_id": vm_id, "disk": disk})
    limit = time.monotonic() + CANCEL_SECONDS
    while (now := parts.eyes.qemu(vm_id, disk)).job is not None and now.works_on(ends):
        try:
            parts.virt.ask(vm_id, "blockJobAbort", lambda domain: domain.blockJobAbort(libvirt_.target, 0))
        except NoDomain as lost:
            raise errors.VmUnsure(vm_id=vm_id, reason=str(lost)) from None
        except errors.HypervisorRefused:
            # it ended in the meantime, or it is a paused one, which QEMU cancels only by force
            _force(parts, vm_id, now.job.id)
        if time.monotonic() > limit:
            raise errors.HypervisorRefused(
                host_id=parts.place.host_id, action="blockJobAbort", reason=f"QEMU still has job {now.job.id}"
            )
        time.sleep(0.05)


def _force(parts: Parts, vm_id: str, job: str) -> None:
    """libvirt hears of the end by QEMU's event and clears up as after its own cancel."""
    with contextlib.suppress(monitor.Mute, monitor.Refused):
        parts.monitors.ask(vm_id, "block-job-cancel", {"device": job, "force": True})


def refuse_template(request: Request, volumes: list[dict[str, Any]]) -> None:
    """Raises TemplateVolume when base or top is a template's: a merge would change every disk made from it."""
    for volume in volumes:
        if volume["volume_id"] in (request["base_id"], request["top_id"]) and volume["volume_type"] == "shared":
            raise errors.TemplateVolume(
                action="A merge",
                volume_id=volume["volume_id"],
                template_disk_id=volume["template_disk_id"] or request["disk"]["disk_id"],
            )
