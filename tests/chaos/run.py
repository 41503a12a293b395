"""One run: ask, let something die, bring everything back, wait for the end, ask again, and hold the world to it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from client.errors import ApiError, Unreachable
from deploy.stack import wait
from deploy.stack.parts import Process
from deploy.stack.room import RoomGone
from tests.chaos import operations, place, plain, whole
from tests.chaos.place import PASSES, Place
from tests.chaos.walk import MOMENT, Plan

ALL = {**operations.ALL, **plain.ALL}
LIMIT = 180  # seconds for a whole run, preparing and checking included; they take 8 to 20
DONE, UNDONE, MISSED, FAILED = "done", "undone", "not reached", "failed"


class Overdue(Exception):
    """A run took longer than LIMIT."""


class Missed(Exception):
    """The crash point was not reached in this run, or there was nothing that could die."""


@dataclass(frozen=True)
class Outcome:
    """`what` is one of the four; `why` the code of the reason, or the sentence of the failure."""

    plan: Plan
    what: str
    why: str
    seconds: float
    phases: str = ""  # seconds for: preparing, dying, coming back, ending, checking


@dataclass
class Asking:
    """The request, made again with the same key until it is answered, in a thread of its own."""

    operation: operations.Operation
    key: str
    job_id: str | None = None
    refused: ApiError | None = None
    sent: threading.Event = field(default_factory=threading.Event)
    giving_up: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._insist, daemon=True)
        self._thread.start()

    def answered(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        self.giving_up.set()

    def _insist(self) -> None:
        while not self.giving_up.is_set():
            try:
                self.sent.set()
                self.job_id = self.job_id or self.operation.ask(self.key)
                self.operation.follow(self.job_id)
                return
            except Unreachable:
                pass
            except wait.NotInTime:
                return
            except ApiError as fault:
                if fault.status not in PASSES:
                    self.refused = fault
                    return
            time.sleep(0.2)


def walk(where: Place, plan: Plan) -> Outcome:
    """Never raises but for a person's interrupt: what goes wrong is an outcome."""
    began = time.monotonic()
    marks: list[float] = [began]
    try:
        with _limited(LIMIT):
            what, why = _run(where, plan, lambda: marks.append(time.monotonic()))
    except Missed as missed:
        what, why = MISSED, str(missed)
    except Exception as fault:
        what, why = FAILED, f"{type(fault).__name__}: {fault}"
        (where.folder / "traceback").write_text(f"{plan}\n{traceback.format_exc()}")
    marks.append(time.monotonic())
    phases = " ".join(f"{end - start:.1f}" for start, end in itertools.pairwise(marks))
    return Outcome(plan, what, why, marks[-1] - began, phases)


def _run(where: Place, plan: Plan, mark: Callable[[], None]) -> tuple[str, str]:
    operation = ALL[plan.operation](where, plan)
    operation.prepare()
    mark()
    process = where.owner_of(plan.point)
    asking = Asking(operation, f"run-{plan.seed}-{time.time_ns()}")
    missed = ""
    try:
        if plan.point != MOMENT:
            process.crash_at(f"{plan.point} hold")
        asking.begin()
        try:
            _die(where, plan, process, asking)
        except Missed as reason:
            missed = str(reason)
        mark()
        where.disarm(process)
        where.bring_back()
        mark()
        what, why = _ended(where, operation, asking)
        mark()
    finally:
        asking.stop()
        where.disarm(process)
    whole.assert_whole(where, operation, None)
    if missed:
        raise Missed(missed)
    return what, why


# -- dying ------------------------------------------------------------------------------------------------


def _die(where: Place, plan: Plan, process: Process, asking: Asking) -> None:
    if plan.point == MOMENT:
        asking.sent.wait(10)
        time.sleep(plan.delay)
        _kill(where, plan)
    else:
        pid = _reached(where, process, asking)
        try:
            _kill(where, plan)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    time.sleep(plan.away)


def _reached(where: Place, process: Process, asking: Asking) -> int:
    """The pid of who stands still at the point; raises Missed if the work ends without coming by."""

    def look() -> int | None:
        pid = where.held(process)
        if pid is not None and place.stopped(pid):
            return pid
        over = asking.answered() and (asking.job_id is None or asking.operation.over(asking.job_id))
        if over and where.held(process) is None:
            raise Missed("the work ended without coming by")
        return None

    return where.until("the crash point", look, 40)


def _kill(where: Place, plan: Plan) -> None:
    try:
        where.kill(plan.victim, plan.choice)
    except RoomGone as gone:
        raise Missed(f"nothing to kill: {gone}") from None


# -- how it ended -----------------------------------------------------------------------------------------


def _ended(where: Place, operation: operations.Operation, asking: Asking) -> tuple[str, str]:
    """The end that the job came to; asked for again under its key it is the same one."""
    wait.until("an answer to the request", asking.answered, 60)
    first = asking.refused.code if asking.refused else ""
    job_id = asking.job_id or where.until("the request to be taken", lambda: _taken(operation, asking.key), 40)
    job = operation.end(job_id)
    assert job["state"] in ("done", "undone"), f"{job['state']}: {job.get('reason')} {job.get('action')}"
    _same_again(where, operation, asking.key, job)
    for vm in {one.id: one for one in (where.vm, *operation.touched)}.values():
        where.running(vm)
    if job["state"] == "done":
        return DONE, f"refused at first: {first}" if first else ""
    reason = job["reason"] or {}
    assert reason.get("message"), f"undone without a reason: {job}"
    operation.repeat()
    return UNDONE, str(reason["code"])


def _taken(operation: operations.Operation, key: str) -> str | None:
    """A refusal may have been right while something was dead; it is not any more."""
    try:
        return operation.ask(key)
    except ApiError as fault:
        if fault.status in PASSES or fault.status == 409:
            return None
        raise


def _same_again(where: Place, operation: operations.Operation, key: str, job: Mapping[str, Any]) -> None:
    again = where.until("an answer to the second request", lambda: operation.ask(key))
    assert again == job["id"], f"the second request made job {again}, the first {job['id']}"
    if not isinstance(operation, plain.Plain):
        state = where.until("the job", lambda: where.api.jobs.get(again)["state"])
        assert state == job["state"], f"asked again the job is {state}, it was {job['state']}"


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Overdue(f"the run took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
