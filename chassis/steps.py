"""Durable flows: a tuple of named steps that survives every crash. The vocabulary is in chassis/flow.py.

    COMMIT = Step("commit", settled=commit_settled, ask=ask_commit, undo=cancel_commit)
    MERGE = FlowKind("merge", steps=(PLAN, EXTEND, COMMIT, PIVOT, RECORD, DISCARD), on_move=tell)

    runner = Runner(database, [MERGE], clock, instance)
    with database.write() as session:
        runner.start(session, MERGE, merge_id, subject=disk_id, data=plan)

The runner of any instance claims the flow by compare-and-set and works on it under a lease. Each claim has a number
higher than all before it (of all flows: what executes an ask may keep one highest number per disk), carried by
every ask as `flow.claim`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from chassis import claims, flow_door, logs
from chassis.claims import Claims
from chassis.clock import Clock, SystemClock
from chassis.database import Database, after_commit
from chassis.flow import (
    ACTIVE,
    DONE,
    RUNNING,
    STUCK,
    UNDOING,
    UNDONE,
    ClaimLost,
    Failed,
    Flow,
    FlowKind,
    FlowRow,
    GoOn,
    Look,
    NeedsPerson,
    Step,
    Unknown,
    counts,
    find,
    get,
    list_active,
    move,
)
from chassis.step_runner import Signal, Stopped, Worker, wait_of
from contracts import errors

__all__ = [
    "ACTIVE",
    "DONE",
    "RUNNING",
    "STUCK",
    "UNDOING",
    "UNDONE",
    "ClaimLost",
    "Failed",
    "Flow",
    "FlowKind",
    "FlowRow",
    "GoOn",
    "Look",
    "NeedsPerson",
    "Runner",
    "Step",
    "Unknown",
    "counts",
    "find",
    "get",
    "list_active",
    "move",
]

POLL = 0.5  # seconds between looks at wakes and cancels from other instances, while there are flows here
IDLE = 3.0  # seconds between looks for flows that nobody owns
STOP_LIMIT = 5.0  # seconds that a stopping runner waits for its workers
_log = logs.get("flows")


def _thread(work: Callable[..., object], *arguments: Any) -> object:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


class Runner:
    """Starts, claims and drives the flows of one service in one process. `limit`: flows at the same time here;
    `patience`: seconds that an unknown outcome is looked at before a person is asked. `home`: a folder on
    this machine where runners see that another one is dead; without it every claim waits for its lease to end."""

    def __init__(
        self,
        database: Database,
        kinds: Iterable[FlowKind],
        clock: Clock | None = None,
        instance: str = "",
        lease_seconds: float = 10.0,
        *,
        patience: float = 1800.0,
        limit: int = 64,
        home: Path | None = None,
        tools: Any = None,
        spawn: Callable[..., object] = _thread,
        signal: Callable[[], Signal] = threading.Event,
    ) -> None:
        self.tools = tools
        self._database = database
        self._kinds = {kind.name: kind for kind in kinds}
        self._clock = clock or SystemClock()
        # two processes under one name must not take each other's claims for their own
        owner = f"{instance}/{uuid.uuid4().hex[:8]}"
        self._claims = Claims(database, owner, lease_seconds, self._kinds, home)
        self._renew_every = lease_seconds / 3
        self._patience = patience
        self._limit = limit
        self._spawn = spawn
        self._new_signal = signal
        self._signal = signal()
        self._workers: dict[str, Worker] = {}
        self._cooling: dict[str, tuple[int, float]] = {}  # flow -> times in trouble, not before (monotonic)
        self._stopping = False
        self._renewed = self._searched = float("-inf")
        self._away = False

    # -- what doors call ----------------------------------------------------------------------------------

    def start(
        self,
        session: Session,
        kind: FlowKind | str,
        flow_id: str,
        subject: str,
        data: dict[str, Any],
        *,
        body: Any = None,
    ) -> FlowRow:
        """Begin a flow in the caller's transaction, or find the one that the same request began before.

        `body` is what makes two requests equal (default: data). Raises IdempotencyConflict for another one.
        """
        kind = self._kinds[kind if isinstance(kind, str) else kind.name]
        body = data if body is None else body
        row, new = flow_door.begin(session, self._database, kind, flow_id, subject=subject, data=data, body=body)
        if new:
            after_commit(session, self._signal.set)
        return row

    def wake(self, flow_id: str, session: Session | None = None) -> None:
        """Let the flow look at the world now, whichever instance owns it. With a session: once that commits."""
        if session is not None:
            if flow_id not in self._workers:
                claims.wake(session, flow_id)
            after_commit(session, lambda: self._poke(flow_id))
        elif flow_id in self._workers:
            self._poke(flow_id)
        else:
            with self._database.write() as own:
                claims.wake(own, flow_id)

    def cancel(self, session: Session, flow_id: str) -> FlowRow:
        """Ask the flow to turn back; asking again changes nothing. Raises NotFound, and TooLate after the point of
        no return. (A cancel that arrives while that point is being passed loses, and the flow ends done.)"""
        row = flow_door.cancel(session, self._database, self._kinds, flow_id)
        after_commit(session, lambda: self._poke(flow_id, outdated=True))
        return row

    def resume(self, session: Session, flow_id: str) -> FlowRow:
        """Put a stuck flow back to work, where and in the direction in which it stopped. Raises NotFound, and
        FlowWrongState for a flow that has ended."""
        row = flow_door.resume(session, self._database, self._kinds, flow_id)
        after_commit(session, self._signal.set)
        return row

    @property
    def active(self) -> int:
        """How many flows are being worked on in this process."""
        return len(self._workers)

    # -- the loop -----------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Claim and drive flows until `stop`. Survives a database that is away."""
        woken = True
        while not self._stopping:
            self._signal.clear()
            try:
                self._round(woken)
                self._away = False
            except errors.DatabaseAway as problem:
                if not self._away:
                    _log.warning(f"flows wait for the database: {problem}")
                self._away = True
            except Exception:
                _log.exception("the flow runner stumbled and goes on")
            woken = self._signal.wait(POLL if self._workers else IDLE)
        self._drain()

    def stop(self) -> None:
        """End the loop: workers stop at their next wait and give their claims back."""
        self._stopping = True
        self._signal.set()

    def _round(self, woken: bool) -> None:
        now = self._clock.monotonic()
        if self._workers:
            if now - self._renewed >= self._renew_every:
                self._claims.renew(list(self._workers))
                self._renewed = now
            self._watch()
        if woken or now - self._searched >= IDLE:
            self._claims.inherit()
            self._search(now)
            self._searched = now

    def _watch(self) -> None:
        """See what other instances wrote into our flows: wakes, cancels, a higher claim."""
        workers = dict(self._workers)
        found = self._claims.wakes(list(workers))
        for flow_id, worker in workers.items():
            if found.get(flow_id) != worker.wakes:
                worker.wakes = found.get(flow_id, worker.wakes)
                worker.poke(outdated=True)

    def _search(self, now: float) -> None:
        """Claim flows that nobody works on, up to our limit."""
        free = self._limit - len(self._workers)
        if free <= 0:
            return
        cooling = [flow_id for flow_id, (_, until) in self._cooling.items() if now < until]
        for flow_id in self._claims.search([*self._workers, *cooling], free):
            row = self._claims.claim(flow_id)
            if row is not None:
                self._begin(row)

    def _begin(self, row: FlowRow) -> None:
        given = {"clock": self._clock, "patience": self._patience, "tools": self.tools}
        worker = Worker(self._database, self._kinds[row.kind], row, signal=self._new_signal(), **given)
        self._workers[row.id] = worker
        _log.debug(f"{row.kind} of {row.subject}: claimed", flow_id=row.id, claim=row.claim, step=row.step)
        self._spawn(self._work, worker)

    def _work(self, worker: Worker) -> None:
        flow_id = worker.flow.id
        try:
            worker.run()
            self._cooling.pop(flow_id, None)
        except ClaimLost as lost:
            _log.warning(f"stops: {lost}", flow_id=flow_id, claim=worker.flow.claim)
        except Stopped:
            self._give_back(worker)
        except errors.DatabaseAway as problem:
            self._cool(flow_id)
            _log.warning(f"flow waits for the database: {problem}", flow_id=flow_id)
        except Exception:
            self._cool(flow_id)
            _log.exception("a flow's worker stumbled; the flow is taken up again", flow_id=flow_id)
        finally:
            del self._workers[flow_id]
            self._signal.set()  # there is room for another one

    def _cool(self, flow_id: str) -> None:
        times = self._cooling.get(flow_id, (0, 0.0))[0] + 1
        self._cooling[flow_id] = (times, self._clock.monotonic() + wait_of(times))

    def _drain(self) -> None:
        for worker in list(self._workers.values()):
            worker.stop()
        limit = self._clock.monotonic() + STOP_LIMIT
        while self._workers and self._clock.monotonic() < limit:
            self._clock.sleep(0.02)

    def _give_back(self, worker: Worker) -> None:
        try:
            self._claims.give_back(worker.flow.row)
        except (errors.DatabaseAway, ClaimLost):
            _log.info("the claim was not given back; its lease will end", flow_id=worker.flow.id)

    def _poke(self, flow_id: str, *, outdated: bool = False) -> None:
        worker = self._workers.get(flow_id)
        if worker is not None:
            worker.poke(outdated=outdated)
        else:
            self._signal.set()
