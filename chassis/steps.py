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

import datetime
import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from chassis import context, flow, logs
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
    Look,
    NeedsPerson,
    Step,
    counts,
    find,
    get,
    list_active,
    move,
)
from chassis.step_runner import Signal, Stopped, Worker, wait_of
from chassis.tables import flows
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
    "Look",
    "NeedsPerson",
    "Runner",
    "Step",
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
    `patience`: seconds that an unknown outcome is looked at before a person is asked."""

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
        tools: Any = None,
        spawn: Callable[..., object] = _thread,
        signal: Callable[[], Signal] = threading.Event,
    ) -> None:
        self.tools = tools
        self._database = database
        self._kinds = {kind.name: kind for kind in kinds}
        self._clock = clock or SystemClock()
        # two processes under one name must not take each other's claims for their own
        self._me = f"{instance}/{uuid.uuid4().hex[:8]}"
        self._lease = datetime.timedelta(seconds=lease_seconds)
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
        hashed = _hash(kind.name, subject, data if body is None else body)
        user = context.current().user
        if not self._insert(session, kind, flow_id, subject=subject, data=data, body_hash=hashed, user=user):
            row = flow.get(session, flow_id)
            if (row.body_hash, row.user) != (hashed, user):
                raise errors.IdempotencyConflict(id=flow_id)
            return row
        row = flow.get(session, flow_id)
        flow.announce(session, kind, row, "", f"starts with {row.step}")
        after_commit(session, self._signal.set)
        return row

    def wake(self, flow_id: str, session: Session | None = None) -> None:
        """Let the flow look at the world now, whichever instance owns it. With a session: once that commits."""
        if session is not None:
            if flow_id not in self._workers:
                _bump(session, flow_id)
            after_commit(session, lambda: self._poke(flow_id))
        elif flow_id in self._workers:
            self._poke(flow_id)
        else:
            with self._database.write() as own:
                _bump(own, flow_id)

    def cancel(self, session: Session, flow_id: str) -> FlowRow:
        """Ask the flow to turn back; asking again changes nothing. Raises NotFound, and TooLate after the point of
        no return. (A cancel that arrives while that point is being passed loses, and the flow ends done.)"""
        row = flow.get(session, flow_id, lock=True)
        if row.undoing or row.state == UNDONE:
            return row
        if row.past or row.state == DONE:
            raise errors.TooLate(flow_id=flow_id)
        user = row.cancel_by or context.current().user or "unknown"
        if row.state == STUCK:
            changes = {"state": RUNNING, "reason": None, "action": None, "cancel_by": user}
            row = self._put_back(session, row, f"cancelled by {user}", changes)
        elif row.cancel_by is None:
            row = flow.store(session, self._database, row, cancel_by=user, wakes=row.wakes + 1)
            after_commit(session, lambda: _log.info(f"{row.kind} of {row.subject}: cancel asked for by {user}"))
            after_commit(session, lambda: self._poke(flow_id, outdated=True))
        return row

    def resume(self, session: Session, flow_id: str) -> FlowRow:
        """Put a stuck flow back to work, where and in the direction in which it stopped. Raises NotFound, and
        FlowWrongState for a flow that has ended."""
        row = flow.get(session, flow_id, lock=True)
        if row.active:
            return row
        if row.state != STUCK:
            raise errors.FlowWrongState(flow_id=flow_id, state=row.state, action="resume", needs=STUCK)
        state = UNDOING if row.undoing else RUNNING
        first = (row.reason or {}).get("first")
        return self._put_back(session, row, "resumed", {"state": state, "reason": first, "action": None})

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
            if now - self._renewed >= self._lease.total_seconds() / 3:
                self._renew()
                self._renewed = now
            self._watch()
        if woken or now - self._searched >= IDLE:
            self._search()
            self._searched = now

    def _renew(self) -> None:
        with self._database.write() as session:
            mine = (flows.c.id.in_(list(self._workers)), flows.c.claimed_by == self._me, flows.c.state.in_(ACTIVE))
            until = self._database.now(session) + self._lease
            session.execute(sa.update(flows).where(*mine).values(lease_until=until))

    def _watch(self) -> None:
        """See what other instances wrote into our flows: wakes, cancels, a higher claim."""
        workers = dict(self._workers)
        columns = (flows.c.id, flows.c.claimed_by, flows.c.wakes, flows.c.state)
        with self._database.read() as session:
            query = sa.select(*columns).where(flows.c.id.in_(list(workers)))
            found = {row.id: row for row in session.execute(query)}
        for flow_id, worker in workers.items():
            row = found.get(flow_id)
            if row is None or row.claimed_by != self._me or row.wakes != worker.wakes:
                worker.wakes = row.wakes if row is not None else worker.wakes
                worker.poke(outdated=True)

    def _search(self) -> None:
        """Claim flows that nobody works on, up to our limit, the oldest first."""
        now = self._clock.monotonic()
        busy = [*self._workers, *(flow_id for flow_id, (_, until) in self._cooling.items() if now < until)]
        free = self._limit - len(self._workers)
        if free <= 0:
            return
        with self._database.read() as session:
            query = sa.select(flows.c.id).where(*self._claimable(session), flows.c.id.not_in(busy))
            ids = list(session.scalars(query.order_by(flows.c.created_at, flows.c.id).limit(free)))
        for flow_id in ids:
            row = self._claim(flow_id)
            if row is not None:
                self._begin(row)

    def _claimable(self, session: Session) -> list[sa.ColumnElement[bool]]:
        unowned = sa.or_(
            flows.c.claimed_by.is_(None),
            flows.c.claimed_by == self._me,  # ours, but its worker ended (database away)
            flows.c.lease_until < self._database.now(session),
        )
        return [flows.c.state.in_(ACTIVE), flows.c.kind.in_(list(self._kinds)), unowned]

    def _claim(self, flow_id: str) -> FlowRow | None:
        others = flows.alias()
        highest = sa.select(sa.func.coalesce(sa.func.max(others.c.claim), 0)).scalar_subquery()
        with self._database.write() as session:
            changes = {
                "claim": highest + 1,
                "claimed_by": self._me,
                "lease_until": self._database.now(session) + self._lease,
            }
            where = (flows.c.id == flow_id, *self._claimable(session))
            found = session.execute(sa.update(flows).where(*where).values(changes).returning(*flow.COLUMNS)).first()
        return None if found is None else flow.row_of(found)

    def _begin(self, row: FlowRow) -> None:
        worker = Worker(
            self._database,
            self._kinds[row.kind],
            row,
            clock=self._clock,
            signal=self._new_signal(),
            patience=self._patience,
            tools=self.tools,
        )
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
            self._signal.set()

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
            with self._database.write() as session:
                flow.store(session, self._database, worker.flow.row, claimed_by=None, lease_until=None)
        except (errors.DatabaseAway, ClaimLost):
            _log.info("the claim was not given back; its lease will end", flow_id=worker.flow.id)

    # -- small parts --------------------------------------------------------------------------------------

    def _insert(self, session: Session, kind: FlowKind, flow_id: str, **given: Any) -> bool:
        now = self._database.now(session)
        values = {
            "id": flow_id,
            "kind": kind.name,
            "request_id": context.current().request_id,
            "state": RUNNING,
            "step": kind.steps[0].name,
            "past": False,
            "undoing": False,
            "created_at": now,
            "updated_at": now,
            "version": 1,
            **dict.fromkeys(("asks", "claim", "wakes"), 0),
            **given,
        }
        insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
        query = insert(flows).values(values).on_conflict_do_nothing().returning(flows.c.id)
        return session.execute(query).first() is not None

    def _put_back(self, session: Session, row: FlowRow, sentence: str, changes: dict[str, Any]) -> FlowRow:
        """A stuck flow to work again; that it was asked for stays known, so that it is also undone."""
        kind = self._kinds[row.kind]
        new = flow.move(session, self._database, kind, row, sentence, asks=min(row.asks, 1), **changes)
        after_commit(session, self._signal.set)
        return new

    def _poke(self, flow_id: str, *, outdated: bool = False) -> None:
        worker = self._workers.get(flow_id)
        if worker is not None:
            worker.poke(outdated=outdated)


def _bump(session: Session, flow_id: str) -> None:
    where = (flows.c.id == flow_id, flows.c.state.in_(ACTIVE))
    session.execute(sa.update(flows).where(*where).values(wakes=flows.c.wakes + 1))


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
