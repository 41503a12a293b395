"""Drives one claimed flow to its end: look, ask, look again; undo in reverse; or ask for a person."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from chassis import context, crash, flow, flow_rules, logs
from chassis.clock import Clock
from chassis.database import Database
from chassis.flow import ClaimLost, Failed, Flow, FlowKind, FlowRow, GoOn, Look, NeedsPerson, Step, Unknown
from contracts import errors

# After these nobody knows whether the command was carried out: look again, never assume.
UNKNOWN = (
    errors.NoAnswer,
    errors.ServiceAway,
    errors.BusAway,
    errors.Late,
    errors.DatabaseAway,
    errors.InternalError,
)
FIRST_WAIT = 0.25  # seconds before the second try of anything; doubled each time
LONGEST_WAIT = 5.0
_log = logs.get("flows")


class Signal(Protocol):
    """threading.Event, or its green twin."""

    def wait(self, timeout: float | None = None) -> bool: ...

    def set(self) -> None: ...

    def clear(self) -> None: ...


class Stopped(Exception):
    """The process is going down in good order; the claim is given back."""


def wait_of(tries: int) -> float:
    """Seconds to wait after this many tries: 0.25, 0.5, 1, 2, 4, 5, 5, ..."""
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries - 1, 10)))


@dataclass
class _Trouble:
    """What went wrong with the present step; forgotten with each move."""

    answered: int = 0  # asks that were answered although the world did not change
    failures: int = 0
    unknowns: int = 0
    unknown_since: float | None = None  # monotonic
    refusal: errors.Problem | None = None  # what the last ask was refused with
    ask_after: float = 0.0  # monotonic

    def another_unknown(self, now: float) -> float:
        """Count it; answers for how many seconds nothing was learnt."""
        self.unknowns += 1
        self.unknown_since = now if self.unknown_since is None else self.unknown_since
        return now - self.unknown_since

    def looked(self) -> None:
        """The world could be seen: patience starts again."""
        self.unknowns, self.unknown_since = 0, None


class _Record:
    """The flow's row as this claim writes it."""

    def __init__(self, database: Database, kind: FlowKind, row: FlowRow, tools: Any) -> None:
        self.flow = Flow(database, kind, row, tools)
        self._database = database
        self._kind = kind

    def move(self, sentence: str, columns: dict[str, Any]) -> None:
        with self._database.write() as session:
            row = flow.move(session, self._database, self._kind, self.flow.row, sentence, **columns)
        self.flow.take(row)

    def store(self, **columns: Any) -> None:
        with self._database.write() as session:
            row = flow.store(session, self._database, self.flow.row, **columns)
        self.flow.take(row)

    def reread(self) -> None:
        with self._database.read() as session:
            row = flow.get(session, self.flow.id)
        if row.claim != self.flow.claim:
            raise ClaimLost(f"{row.kind} {row.id} was taken over")
        self.flow.take(row)

    def call(self, part: Callable[[Flow], Any]) -> Any:
        """Run one part of a step; all that it may raise becomes Failed, Unknown, NeedsPerson or ClaimLost."""
        try:
            return part(self.flow)
        except (ClaimLost, NeedsPerson, Failed, Unknown, GoOn):
            raise
        except errors.StaleClaim as stale:
            self._renumber(stale)
            raise Unknown(stale) from None
        except errors.Problem as problem:
            raise (Unknown(problem) if isinstance(problem, UNKNOWN) else Failed(problem)) from None
        except Exception:
            number = uuid.uuid4().hex
            _log.exception("a step raised what it must not raise", correlation_id=number, step=self.flow.step)
            raise Unknown(errors.InternalError(correlation_id=number)) from None

    def _renumber(self, stale: errors.StaleClaim) -> None:
        """Our number was refused. If another instance took over, this raises ClaimLost. If the claim is still ours,
        then our database is older than the executor's memory (restored from a backup): take a higher number."""
        highest = max(int(stale.fields.get("highest") or 0), self.flow.claim)
        self.store(claim=highest + 1)


class Worker:
    """One flow under one claim. Runs in its own green thread; other threads may call `poke` and `stop`."""

    def __init__(
        self,
        database: Database,
        kind: FlowKind,
        row: FlowRow,
        *,
        clock: Clock,
        signal: Signal,
        patience: float,
        tools: Any = None,
    ) -> None:
        self._record = _Record(database, kind, row, tools)
        self.flow = self._record.flow
        self.wakes = row.wakes  # how many wakes of other instances the runner has passed on
        self._stopping = False
        self._kind = kind
        self._clock = clock
        self._signal = signal
        self._patience = patience
        self._outdated = False
        self._trouble = _Trouble()

    # -- what the runner calls ----------------------------------------------------------------------------

    def poke(self, *, outdated: bool = False) -> None:
        """Look again now; `outdated`: the row was changed by somebody else, read it first."""
        self._outdated = self._outdated or outdated
        self._signal.set()

    def stop(self) -> None:
        """End at the next wait."""
        self._stopping = True
        self._signal.set()

    def run(self) -> None:
        """Work until the flow ends, is lost, or the process stops. Raises ClaimLost, Stopped, DatabaseAway."""
        row = self.flow.row
        call = context.Call(request_id=row.request_id, flow_id=row.id, user=row.user, deadline=None)
        with context.use(call):
            while self.flow.row.active:
                self._check()
                self._signal.clear()
                if self._outdated:
                    self._outdated = False
                    self._record.reread()
                else:
                    self._turn()

    # -- one turn -----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        try:
            step = self._step()
            if self.flow.state == flow.RUNNING:
                self._forward(step)
            else:
                self._back(step)
        except NeedsPerson as need:
            self._needs_person(need)
        except Failed as failure:
            self._failed(failure.problem)
        except GoOn as why:
            self._move(flow_rules.go_on(str(why)))
        except Unknown as unknown:
            self._unknown(unknown.problem)

    def _step(self) -> Step:
        try:
            return self._kind.step(self.flow.step)
        except LookupError as problem:
            _log.error(str(problem), flow_id=self.flow.id)
            reason = errors.InternalError(correlation_id=self.flow.id)
            raise NeedsPerson(reason, f"Run the version of the service that knows it: {problem}.") from None

    def _forward(self, step: Step) -> None:
        look = self._record.call(step.settled)
        self._trouble.looked()
        if look is Look.SETTLED:
            crash.point(f"{self._kind.name}.{step.name}.after_settled")
            self._move(flow_rules.settle(self._kind, self.flow.row))
        elif self._may_cancel(step, look):
            self._cancel()
        elif look is Look.RUNNING:
            self._wait(step.patience)
        elif self._trouble.refusal is not None:
            refusal, self._trouble.refusal = self._trouble.refusal, None
            raise Failed(refusal)
        elif self._clock.monotonic() < self._trouble.ask_after:
            self._wait(self._trouble.ask_after - self._clock.monotonic())
        else:
            self._ask(step)

    def _may_cancel(self, step: Step, look: Look | None) -> bool:
        """While the step of no return may be happening nobody knows on which side we are: only a look that shows
        that it is not happening allows to turn back."""
        if self.flow.row.cancel_by is None or self.flow.row.past:
            return False
        return not step.no_way_back or look is Look.ASK

    def _ask(self, step: Step) -> None:
        if self._trouble.answered >= step.tries:
            raise Failed(errors.NotSettled(flow_id=self.flow.id, step=step.name, tries=self._trouble.answered))
        name = f"{self._kind.name}.{step.name}"
        self._record.store(asks=self.flow.asks + 1)  # written down before acting
        _log.info(f"{self.flow.kind} of {self.flow.subject}: asks for {step.name}", claim=self.flow.claim)
        crash.point(f"{name}.before_ask")
        try:
            self._record.call(step.ask)
        except Failed as failure:
            self._trouble.refusal = failure.problem  # the world decides: look once more before believing it
        crash.point(f"{name}.after_ask")
        self._trouble.answered += 1
        self._trouble.ask_after = self._clock.monotonic() + wait_of(self._trouble.answered)

    # -- backwards ----------------------------------------------------------------------------------------

    def _turn_back(self, problem: errors.Problem) -> None:
        self._move(flow_rules.turn_back(self._kind, self.flow.row, problem))

    def _cancel(self) -> None:
        self._turn_back(errors.Cancelled(user=self.flow.row.cancel_by))

    def _back(self, step: Step) -> None:
        if step.undo is not None:
            crash.point(f"{self._kind.name}.{step.name}.before_undo")
            if self._record.call(step.undo) is Look.RUNNING:
                self._trouble.looked()
                self._wait(step.patience)
                return
            crash.point(f"{self._kind.name}.{step.name}.after_undo")
        self._move(flow_rules.step_back(self._kind, self.flow.row))

    # -- when it does not work ----------------------------------------------------------------------------

    def _failed(self, problem: errors.Problem) -> None:
        """A definite failure: turn back while that is possible, else try again, else ask for a person."""
        if self.flow.state == flow.RUNNING and not self.flow.row.past:
            self._turn_back(problem)
            return
        self._trouble.failures += 1
        if self._trouble.failures >= self._step().tries:
            self._stick(problem)
            return
        self._warn(f"{self.flow.step} failed, tries again: {problem}")
        self._trouble.answered = 0
        self._wait(wait_of(self._trouble.failures))

    def _unknown(self, problem: errors.Problem) -> None:
        """Nothing was learnt: look again, more and more slowly, until patience ends."""
        now = self._clock.monotonic()
        waited = self._trouble.another_unknown(now)
        self._outdated = True  # a save in the step may have been committed without us knowing
        if self.flow.state == flow.RUNNING and self._may_cancel(self._step(), None):
            self._cancel()
        elif waited >= self._patience:
            self._stick(problem)
        else:
            if self._trouble.unknowns == 1:
                self._warn(f"outcome of {self.flow.step} is unknown, looks again: {problem}")
            wait = wait_of(self._trouble.unknowns)
            self._trouble.ask_after = now + wait
            self._wait(wait)

    def _needs_person(self, need: NeedsPerson) -> None:
        """A person who has cancelled already is not asked again, where turning back is safe."""
        known = any(step.name == self.flow.step for step in self._kind.steps)
        if known and self.flow.state == flow.RUNNING and self._may_cancel(self._step(), None):
            self._cancel()
        else:
            self._stick(need.reason, need.action)

    def _stick(self, problem: errors.Problem, action: str = "") -> None:
        self._move(flow_rules.stick(self.flow.row, problem, action))

    # -- small parts --------------------------------------------------------------------------------------

    def _move(self, decision: flow_rules.Decision) -> None:
        self._record.move(*decision)
        self._trouble = _Trouble()

    def _warn(self, sentence: str) -> None:
        _log.warning(f"{self.flow.kind} of {self.flow.subject}: {sentence}")

    def _wait(self, seconds: float) -> None:
        self._check()
        self._signal.wait(seconds)

    def _check(self) -> None:
        if self._stopping:
            raise Stopped
