"""The pivot: the only moment at which a merge stops the guest, and the only one at which a leaf changes hands.

    journal the pause -> suspend (unless somebody else had) -> ask for the pivot -> look in QEMU's own monitor
    -> mark top ILLEGAL, durably -> resume -> forget the pause

Nothing is marked before QEMU writes to base: at READY base lags behind. While the guest stands still both volumes
read the same, so a crash before the mark starts from top and one after it from base. The guest is never resumed while
the outcome is unknown or the mark is missing. `_drive` looks and does the one thing that comes next, so an ask, a
repeated ask and an agent that comes back to its own pause all run the same lines.

The pause is short: QEMU has switched well before libvirt answers (it tidies its job and its files first), so the look
and the mark are made in that time; only what decides is asked, everything else waits until the guest runs (`Still`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import libvirt

from chassis import crash, logs
from contracts import errors
from services.hostagent import commit, monitor, process, views
from services.hostagent.times import SETTLE, Times
from services.hostagent.virt import Beside, NoDomain
from services.hostagent.work import Parts, Request

DRIVE_SECONDS = 45.0  # of one ask; the pause stays journalled and is driven on in the background after that
AGAIN = 0.2  # seconds after something did not work
KEEP_EVERY = 2.0  # seconds between attempts in the background
AWAY_SECONDS = 10.0  # that the guest stands still for a libvirtd that is away, before its job is cancelled without it
ASK_SECONDS = 10.0  # of one ask of libvirt while the guest stands still
LIBVIRT_SECONDS = 5.0  # for libvirt to come back before the guest is resumed without it

Pause = dict[str, Any]
_log = logs.get("pivot")


class _NotYet(Exception):
    """Nothing was learnt or gained: look again."""


# budget: the whole drive of one pause, read from top to bottom
class Pivot:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._wake = threading.Event()

    def start(self) -> None:
        """Finish our own pauses of before, now and whenever an ask leaves one."""
        threading.Thread(target=self._keep, name="pauses", daemon=True).start()

    def wake(self) -> None:
        """Something happened to a VM that we paused."""
        self._wake.set()

    def ask(self, request: Request) -> dict[str, Any]:
        """contracts.hostagent.Pivoted."""
        vm_id, disk = request["vm_id"], request["disk"]
        with self._parts.turn(request):
            self._finish_old(vm_id, disk)
            qemu, libvirt_ = self._parts.sure(request)
            if qemu.leaf == request["base_id"]:
                self._parts.storage.mark(disk["domain"], disk["disk_id"], request["top_id"], "illegal", _heir(request))
                return Times().facts()
            if qemu.state == "running" and self._parts.leasing.retake.wait(vm_id):
                qemu, libvirt_ = self._parts.sure(request)
            self._refuse(request, qemu, libvirt_)
            # space and time are spent now, not while the guest stands still
            self._parts.storage.prepare_mark(
                disk["domain"], disk["disk_id"], request["top_id"], "illegal", _heir(request)
            )
            self._parts.journal.put("pauses", vm_id, _pause(request, qemu, libvirt_))
            crash.point("pivot.after_journal")
            try:
                return self._drive(vm_id, DRIVE_SECONDS).facts()
            finally:
                if self._parts.journal.get("pauses", vm_id):
                    self._wake.set()

    def recover(self, vm_id: str, seconds: float = DRIVE_SECONDS) -> None:
        """Finish a pause of ours, if there is one."""
        if self._parts.journal.get("pauses", vm_id):
            self._drive(vm_id, seconds)

    # -- before --

    def _finish_old(self, vm_id: str, disk: dict[str, Any]) -> None:
        try:
            self.recover(vm_id)
        except (errors.PivotFailed, errors.JobFailed):
            old = self._parts.journal.get("pauses", vm_id)
            if old:
                raise errors.DiskBusy(disk_id=disk["disk_id"], flow_id=old["flow_id"]) from None

    def _refuse(self, request: Request, qemu: views.Qemu, libvirt_: views.Libvirt) -> None:
        disk_id = request["disk"]["disk_id"]
        if qemu.leaf != request["top_id"]:
            raise errors.ChainDiffers(disk_id=disk_id, reason=f"QEMU writes to {qemu.leaf}, not {request['top_id']}")
        path = [request["top_id"], *request["between"], request["base_id"]]
        if list(qemu.ids[: len(path)]) != path:  # the mark passes over what it says lies between
            raise errors.ChainDiffers(disk_id=disk_id, reason=f"QEMU has the chain {qemu.ids}, not {path}")
        if qemu.job is None:
            raise errors.JobFailed(disk_id=disk_id, reason="there is no job to pivot")
        ends = views.Ends(request["base_id"], request["top_id"])
        if not qemu.works_on(ends) or libvirt_.denies(ends):
            raise errors.ForeignJob(disk_id=disk_id, job=qemu.job.id)
        if not (qemu.job.status == "ready" and libvirt_.mirror_ready):
            raise errors.VmWrongState(
                vm_id=request["vm_id"],
                state=f"at a job that is {qemu.job.status}",
                action="pivot",
                needs="at a ready mirror",
            )

    # -- the drive --

    def _drive(self, vm_id: str, seconds: float) -> Times:
        """Until the pause is over. Raises VmUnsure when time runs out (the pause stays), VmStopped, PivotFailed."""
        times = Times()
        with self._parts.still.stand():
            self._drive_on(vm_id, seconds, times)
        return times

    def _drive_on(self, vm_id: str, seconds: float, times: Times) -> None:
        limit, last = time.monotonic() + seconds, "QEMU does not answer"
        patience = time.monotonic() + AWAY_SECONDS
        while pause := self._parts.journal.get("pauses", vm_id):
            try:
                self._next(pause, times)
            except _NotYet as nothing:
                last = str(nothing)
            except (errors.HypervisorAway, errors.HypervisorRefused, errors.StorageTimeout) as fault:
                last = str(fault)
                time.sleep(AGAIN)
                if isinstance(fault, errors.HypervisorAway) and time.monotonic() > patience:
                    self._cancel_without_libvirt(pause)
            if time.monotonic() > limit:
                raise errors.VmUnsure(vm_id=vm_id, reason=f"the pivot's pause is not over yet: {last}")

    def _next(self, pause: Pause, times: Times) -> None:
        """Look, and do what comes next."""
        vm_id = pause["vm_id"]
        if process.started(pause["pid"]) != pause["started"]:
            self._forget(pause)
            raise errors.VmStopped(vm_id=vm_id, action="it was paused for a pivot")
        qemu = self._parts.eyes.glance(vm_id, pause["disk"])
        if qemu.leaf == pause["base_id"]:
            self._mark(pause, times)
            self._go_on(pause, qemu, times)
            return
        qemu = self._parts.eyes.qemu(vm_id, pause["disk"])
        if qemu.state in ("unreachable", "absent"):
            time.sleep(SETTLE)
            raise _NotYet("QEMU's monitor does not answer")
        if qemu.leaf != pause["top_id"]:
            time.sleep(AGAIN)
            raise _NotYet(f"QEMU writes to {qemu.leaf}, which is neither end of the merge")
        if qemu.job is None:
            self._back_on_top(pause, times, "the job ended without a pivot", failed=True)
        elif pause["tries"] >= self._parts.place.pivot_tries or times.stuck() or pause.get("unfit"):
            ends = views.Ends(pause["base_id"], pause["top_id"])
            commit.abort(self._parts, vm_id, pause["disk"], ends)
            after = self._parts.eyes.qemu(vm_id, pause["disk"])
            if after.leaf != pause["top_id"] or after.works_on(ends):
                # the pivot may have been faster than its cancel: the guest stays where it is until QEMU says which
                raise _NotYet("whether the pivot or its cancel was faster is not known yet")
            self._back_on_top(pause, times, pause["reason"] or f"its job was {qemu.job.status}", failed=False)
        elif qemu.job.status != "ready":
            times.wait()  # it is just being completed or cancelled, or somebody paused it
            raise _NotYet(f"job {qemu.job.id} is {qemu.job.status}")
        else:
            self._try(pause, qemu, times)

    def _try(self, pause: Pause, qemu: views.Qemu, times: Times) -> None:
        """Suspend and ask for the pivot; what came of it is for the next look, where it is not seen at once."""
        vm_id = pause["vm_id"]
        with self._bell(vm_id) as switched:
            if qemu.state == "running":
                why = self._parts.leasing.retake.why_not(vm_id)
                if why is not None:  # a guest that would stand still afterwards is not paused: the job is cancelled
                    pause = {**pause, "unfit": True, "reason": f"its lease could not be taken again: {why}"}
                    self._parts.journal.put("pauses", vm_id, pause)
                    return
                if pause["theirs"]:  # whoever had paused it has let it go: from now on the pause is ours to end
                    pause = {**pause, "theirs": False}
                    self._parts.journal.put("pauses", vm_id, pause)
                with times.part("suspend_ms"):
                    self._libvirt(pause, "suspend", lambda domain: domain.suspend())
                    if self._status(vm_id) == "running":
                        raise _NotYet("the guest runs on after a suspend")
                crash.point("pivot.after_suspend")
            try:
                marked = self._ask(pause, switched, times)
            except errors.HypervisorRefused as fault:
                tries = pause["tries"] + 1
                _log.warning("QEMU refused a pivot", vm_id=vm_id, tries=tries, reason=fault.fields["reason"])
                self._parts.journal.put("pauses", vm_id, {**pause, "tries": tries, "reason": fault.fields["reason"]})
                time.sleep(SETTLE)
                return
        if marked is not None:
            self._go_on(pause, marked, times)

    @contextlib.contextmanager
    def _bell(self, vm_id: str) -> Iterator[threading.Event]:
        with contextlib.ExitStack() as stack:
            try:
                switched = stack.enter_context(self._parts.monitors.bell(vm_id, "BLOCK_JOB_COMPLETED"))
            except monitor.Mute:
                time.sleep(SETTLE)
                raise _NotYet("QEMU's monitor does not answer") from None
            yield switched

    def _ask(self, pause: Pause, switched: threading.Event, times: Times) -> views.Qemu | None:
        """Ask for the pivot, and mark as soon as QEMU's own monitor shows base. Answers that look, once the mark is
        durable and libvirt has answered too."""
        target, flag = pause["target"], libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        marked: list[views.Qemu] = []

        def beside(call: Future[Any]) -> None:
            call.add_done_callback(lambda _: switched.set())
            limit = time.monotonic() + ASK_SECONDS
            while not (marked or call.done()) and switched.wait(max(0.0, limit - time.monotonic())):
                switched.clear()
                marked.extend(self._mark_if_switched(pause, times))

        with times.part("pivot_ms"):
            self._libvirt(
                pause, "blockJobAbort", lambda domain: domain.blockJobAbort(target, flag), "pivot.after_ask", beside
            )
        return marked[0] if marked else None

    def _mark_if_switched(self, pause: Pause, times: Times) -> list[views.Qemu]:
        """Raises nothing: what does not come about here is for the next look."""
        try:
            with times.part("look_ms"):
                qemu = self._parts.eyes.glance(pause["vm_id"], pause["disk"])
            if qemu.leaf == pause["base_id"]:
                self._mark(pause, times)
                return [qemu]
        except Exception as fault:
            _log.warning("no mark beside the ask for a pivot", vm_id=pause["vm_id"], reason=str(fault))
        return []

    def _mark(self, pause: Pause, times: Times) -> None:
        """QEMU writes to base: no start may take top from now on."""
        crash.point("pivot.after_pivot")
        disk = pause["disk"]
        with times.part("mark_ms"):
            self._parts.storage.mark(disk["domain"], disk["disk_id"], pause["top_id"], "illegal", _heir(pause))
        crash.point("pivot.after_mark")

    def _go_on(self, pause: Pause, qemu: views.Qemu, times: Times) -> None:
        """The mark is durable: resume, forget."""
        if qemu.state != "running" and not pause["theirs"]:
            self._resume(pause, times)
        times.over()
        crash.point("pivot.after_resume")
        self._forget(pause)
        disk_id = pause["disk"]["disk_id"]
        _log.info("the guest writes to base", vm_id=pause["vm_id"], disk_id=disk_id, **times.facts())

    def _back_on_top(self, pause: Pause, times: Times, reason: str, *, failed: bool) -> None:
        """QEMU has no job that could still pivot, and writes to top: nothing is marked, the guest goes on there."""
        if self._status(pause["vm_id"]) != "running" and not pause["theirs"]:
            self._resume(pause, times)
        self._forget(pause)
        disk_id = pause["disk"]["disk_id"]
        if failed:
            raise errors.JobFailed(disk_id=disk_id, reason=reason)
        raise errors.PivotFailed(disk_id=disk_id, tries=pause["tries"], reason=reason)

    def _resume(self, pause: Pause, times: Times) -> None:
        """By libvirt, repaired first where it lost the VM. Where it stays away the guest is not kept standing: the
        outcome is known and the mark is durable (or nothing was to be marked), so QEMU may go on by our own monitor.
        A VM with a lease may not: only libvirt takes that again."""
        vm_id, why = pause["vm_id"], ""
        try:
            with times.part("resume_ms"):
                self._resume_by_libvirt(pause)
            times.over()
        except (errors.HypervisorAway, errors.HypervisorRefused, errors.VmUnsure, _NotYet) as fault:
            why = f" ({fault})"
            _log.warning("libvirt does not resume the guest; QEMU is asked", vm_id=vm_id, reason=str(fault))
        if self._status(vm_id) in ("paused", "io-error") and not self._parts.leasing.keeps(vm_id):
            self._parts.monitors.ask(vm_id, "cont")
        if self._status(vm_id) == "paused":
            time.sleep(AGAIN)
            raise _NotYet(f"the guest stands still after a resume{why}")

    def _resume_by_libvirt(self, pause: Pause) -> None:
        if not self._parts.virt.wait(LIBVIRT_SECONDS):
            raise self._parts.virt.away(self._parts.virt.fault)
        try:
            self._libvirt(pause, "resume", lambda domain: domain.resume())
        except _NotYet:  # libvirt had lost the VM and has it again
            self._libvirt(pause, "resume", lambda domain: domain.resume())

    def _libvirt(self, pause: Pause, what: str, call: Any, point: str = "", beside: Beside | None = None) -> None:
        """One ask of libvirt; a VM that it lost is given back to it first."""
        vm_id = pause["vm_id"]
        try:
            self._parts.virt.ask(vm_id, what, call, ASK_SECONDS, point=point, beside=beside)
        except NoDomain:
            if process.started(pause["pid"]) == pause["started"]:
                self._give_back(pause)
            raise _NotYet("libvirt had lost the VM") from None

    def _give_back(self, pause: Pause) -> None:
        try:
            self._parts.repair.mend(pause["vm_id"])
        except errors.VmUnsure:
            self._cancel_without_libvirt(pause)
            raise

    def _cancel_without_libvirt(self, pause: Pause) -> None:
        """End the job over our own monitor, so that the outcome is known (no job can pivot any more) and the guest
        need not stand still for libvirt. After a pivot there is no job, and nothing is done."""
        vm_id = pause["vm_id"]
        job = self._parts.eyes.qemu(vm_id, pause["disk"]).job
        if job is None:
            return
        _log.warning("libvirt is away: the job of a pivot is cancelled without it", vm_id=vm_id, job=job.id)
        with contextlib.suppress(monitor.Mute, monitor.Refused):  # the next look says what came of it
            self._parts.monitors.ask(vm_id, "block-job-cancel", {"device": job.id, "force": True})

    def _status(self, vm_id: str) -> str:
        try:
            return self._parts.monitors.status(vm_id)
        except (monitor.Mute, monitor.Refused):
            raise _NotYet("QEMU's monitor does not answer") from None

    def _forget(self, pause: Pause) -> None:
        self._parts.journal.put("pauses", pause["vm_id"], None)

    # -- in the background --

    def _keep(self) -> None:
        while True:
            pauses = self._parts.journal.all("pauses")
            if not pauses:
                self._wake.wait()
            self._wake.clear()
            for pause in self._parts.journal.all("pauses").values():
                self._keep_one(pause)
            if self._parts.journal.all("pauses"):
                self._wake.wait(KEEP_EVERY)

    def _keep_one(self, pause: Pause) -> None:
        vm_id = pause["vm_id"]
        try:
            flow = pause["flow_id"]
            with self._parts.disks.hold(pause["disk"]["disk_id"], flow, 60.0), self._parts.vm(vm_id, flow):
                self.recover(vm_id)
            _log.info("a pause of ours is over", vm_id=vm_id)
        except errors.Problem as problem:
            _log.warning("a pause of ours", vm_id=vm_id, outcome=str(problem))
        except Exception:
            _log.exception("a pause of ours could not be finished yet", vm_id=vm_id)


def _pause(request: Request, qemu: views.Qemu, libvirt_: views.Libvirt) -> Pause:
    """`theirs`: somebody else had paused the guest before, and resumes it. pid and start time name the QEMU."""
    if qemu.process is None:
        raise errors.VmStopped(vm_id=request["vm_id"], action="it was to be paused for a pivot")
    return {
        "vm_id": request["vm_id"],
        "disk": request["disk"],
        "base_id": request["base_id"],
        "top_id": request["top_id"],
        "between": request["between"],
        "flow_id": request["claim"]["flow_id"],
        "target": libvirt_.target,
        "pid": qemu.process.pid,
        "started": qemu.process.started,
        "theirs": qemu.state != "running",
        "tries": 0,
        "reason": "",
    }


def _heir(told: dict[str, Any]) -> str | None:
    """Base, where the merge is of a range: one write marks top and passes over what lies between."""
    return str(told["base_id"]) if told.get("between") else None
