"""One durable flow: its words (Look, Step, FlowKind), its row, and `move`, the one function that changes its state.

running ──▶ done                 every step settled
running ──▶ undoing ──▶ undone   a failure or a cancel before the point of no return; `reason` says which
undoing ──▶ running              an undo found that only forward is left (GoOn)
running, undoing ──▶ stuck       a person is needed; `action` says for what; resume puts it back
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import logs
from chassis.database import Database, after_commit
from chassis.tables import flows
from contracts import errors

RUNNING = "running"
UNDOING = "undoing"
DONE = "done"
UNDONE = "undone"
STUCK = "stuck"
ACTIVE = (RUNNING, UNDOING)

# Every change of state that exists; "" is a flow that does not exist yet.
_MOVES: dict[str, frozenset[str]] = {
    "": frozenset({RUNNING}),
    RUNNING: frozenset({RUNNING, UNDOING, DONE, UNDONE, STUCK}),
    UNDOING: frozenset({RUNNING, UNDOING, UNDONE, STUCK}),
    STUCK: frozenset({RUNNING, UNDOING, UNDONE}),
    DONE: frozenset(),
    UNDONE: frozenset(),
}
_log = logs.get("flows")


class Look(enum.Enum):
    """What a step saw in the world."""

    SETTLED = "settled"  # it holds; go on
    RUNNING = "running"  # it is on its way; look again later
    ASK = "ask"  # it does not hold and nobody works on it


class Failed(Exception):
    """Raised by a step: this cannot be done, and nothing of it is under way."""

    def __init__(self, problem: errors.Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


class NeedsPerson(Exception):
    """Raised by a step: only a person can help; `action` tells what to do (default: the problem's own advice)."""

    def __init__(self, reason: errors.Problem, action: str = "") -> None:
        self.reason = reason
        self.action = action or reason.advice
        super().__init__(str(reason))


class Unknown(Exception):
    """Raised by a step: nothing was learnt, and asking could do harm; it looks again until patience ends."""

    def __init__(self, problem: errors.Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


class GoOn(Exception):
    """Raised by an undo: what it should take back has happened for good. The flow runs again at this step, past its
    point of no return; the text says why."""


class ClaimLost(Exception):
    """Another instance has taken the flow over; whoever gets this stops at once and changes nothing."""


@dataclass(frozen=True)
class Step:
    """One step. `settled` looks at the world and changes nothing; `ask` is one idempotent command and the last thing
    that the step does; `undo` takes it back, is idempotent, and may answer RUNNING to be called again.

    `no_way_back`: once this step is settled the flow only goes forward. `patience`: seconds between looks while
    RUNNING. `tries`: answered asks, and failures after the point of no return, before giving up.
    """

    name: str
    settled: Callable[[Flow], Look]
    ask: Callable[[Flow], object]
    undo: Callable[[Flow], Look | None] | None = None
    no_way_back: bool = False
    patience: float = 0.5
    tries: int = 5


OnMove = Callable[[Session, "FlowRow", str, str], object]


@dataclass(frozen=True)
class FlowKind:
    """A kind of flow. `on_move(session, row, old state, new state)` runs in the transaction of each move (also when
    only the step or the progress changed): it writes the domain's rows and tells the news."""

    name: str
    steps: tuple[Step, ...]
    on_move: OnMove | None = None

    def step(self, name: str) -> Step:
        return self.steps[self.index(name)]

    def index(self, name: str) -> int:
        """Raises LookupError for a step that this version does not know."""
        for index, step in enumerate(self.steps):
            if step.name == name:
                return index
        raise LookupError(f"{self.name} has no step {name}")

    def after(self, name: str) -> Step | None:
        following = self.steps[self.index(name) + 1 :]
        return following[0] if following else None

    def before(self, name: str) -> Step | None:
        index = self.index(name)
        return self.steps[index - 1] if index else None


@dataclass(frozen=True)
class FlowRow:
    """The flow as it is stored. `past`: beyond the point of no return. `reason`: {"code", "fields"} of an error."""

    id: str
    kind: str
    subject: str
    body_hash: str
    user: str
    request_id: str
    data: dict[str, Any]
    state: str
    step: str
    past: bool
    undoing: bool
    asks: int
    claim: int
    claimed_by: str | None
    lease_until: datetime.datetime | None
    wakes: int
    cancel_by: str | None
    reason: dict[str, Any] | None
    action: str | None
    progress: dict[str, Any] | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    version: int

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def problem(self) -> errors.Problem | None:
        return None if self.reason is None else errors.from_wire(self.reason)


COLUMNS = tuple(flows.c[field.name] for field in dataclasses.fields(FlowRow))


def row_of(found: sa.Row[Any]) -> FlowRow:
    return FlowRow(*found)


def find(session: Session, flow_id: str, *, lock: bool = False) -> FlowRow | None:
    """The flow, or None. `lock` keeps other writers away until the transaction ends."""
    query = sa.select(*COLUMNS).where(flows.c.id == flow_id)
    found = session.execute(query.with_for_update() if lock else query).first()
    return None if found is None else row_of(found)


def get(session: Session, flow_id: str, *, lock: bool = False) -> FlowRow:
    """The flow; raises NotFound."""
    row = find(session, flow_id, lock=lock)
    if row is None:
        raise errors.NotFound(kind="job", id=flow_id)
    return row


def list_active(session: Session, *, kind: str | None = None, subject: str | None = None) -> list[FlowRow]:
    """Flows that run, undo, or wait for a person; oldest first."""
    query = sa.select(*COLUMNS).where(flows.c.state.in_((*ACTIVE, STUCK))).order_by(flows.c.created_at, flows.c.id)
    if kind is not None:
        query = query.where(flows.c.kind == kind)
    if subject is not None:
        query = query.where(flows.c.subject == subject)
    return [row_of(found) for found in session.execute(query)]


def counts(session: Session) -> dict[tuple[str, str], int]:
    """How many flows of each (kind, state) there are."""
    query = sa.select(flows.c.kind, flows.c.state, sa.func.count()).group_by(flows.c.kind, flows.c.state)
    return {(kind, state): number for kind, state, number in session.execute(query)}


def store(session: Session, database: Database, row: FlowRow, **columns: Any) -> FlowRow:
    """Write columns of a flow that is still in the state and under the claim of `row`; raises ClaimLost if not."""
    where = (flows.c.id == row.id, flows.c.claim == row.claim, flows.c.state == row.state)
    changes = {"updated_at": database.now(session), "version": flows.c.version + 1, **columns}
    query = sa.update(flows).where(*where).values(changes).returning(*COLUMNS)
    found = session.execute(query).first()
    if found is None:
        raise ClaimLost(f"{row.kind} {row.id} is not {row.state} under claim {row.claim} any more")
    return row_of(found)


def move(session: Session, database: Database, kind: FlowKind, row: FlowRow, sentence: str, **columns: Any) -> FlowRow:
    """The only function that changes a flow's state: validates, stores, tells `on_move`, and logs one sentence once
    the transaction is committed. Raises ClaimLost, and ValueError for a move that does not exist."""
    state = columns.get("state", row.state)
    if state not in _MOVES[row.state]:
        raise ValueError(f"a flow does not go from {row.state} to {state}")
    if state not in ACTIVE:
        columns |= {"claimed_by": None, "lease_until": None}
    new = store(session, database, row, **columns)
    announce(session, kind, new, row.state, sentence)
    return new


def announce(session: Session, kind: FlowKind, new: FlowRow, old: str, sentence: str) -> None:
    """Tell `on_move` now and the log after the commit."""
    if kind.on_move is not None:
        kind.on_move(session, new, old, new.state)
    say(session, new, sentence)


def say(session: Session, row: FlowRow, sentence: str) -> None:
    """Log one sentence about the flow once the transaction is committed."""
    fields = {"flow_id": row.id, "state": row.state, "step": row.step, "claim": row.claim, "version": row.version}
    after_commit(session, lambda: _log.info(f"{row.kind} of {row.subject}: {sentence}", **fields))


class Flow:
    """What a step gets: the flow's facts, and ways to keep something. `tools` is what the service gave the runner."""

    def __init__(self, database: Database, kind: FlowKind, row: FlowRow, tools: Any = None) -> None:
        self.row = row
        self.tools = tools
        self._database = database
        self._kind = kind
        self.data: dict[str, Any] = dict(row.data)

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def kind(self) -> str:
        return self.row.kind

    @property
    def subject(self) -> str:
        return self.row.subject

    @property
    def user(self) -> str:
        return self.row.user

    @property
    def claim(self) -> int:
        """The number that every ask carries."""
        return self.row.claim

    @property
    def state(self) -> str:
        return self.row.state

    @property
    def step(self) -> str:
        return self.row.step

    @property
    def asks(self) -> int:
        """How often the present step was asked for."""
        return self.row.asks

    @property
    def cancel_requested(self) -> bool:
        return self.row.cancel_by is not None

    @property
    def reason(self) -> errors.Problem | None:
        """Why it is undone or stuck."""
        return self.row.problem

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A write transaction under the claim, for the service's own rows; raises ClaimLost before anything else."""
        with self._database.write() as session:
            row = find(session, self.id, lock=True)
            if row is None or row.claim != self.claim:
                raise ClaimLost(f"{self.kind} {self.id} was taken over")
            yield session

    def save(self, **changes: Any) -> None:
        """Keep these in `data`, durably, before acting on them. Raises ClaimLost."""
        data = {**self.data, **changes}
        with self._database.write() as session:
            row = store(session, self._database, self.row, data=data)
        self.take(row)

    def report(self, progress: dict[str, Any]) -> None:
        """Show progress: kept in the row and told as a move."""
        with self._database.write() as session:
            row = store(session, self._database, self.row, progress=progress)
            if self._kind.on_move is not None:
                self._kind.on_move(session, row, row.state, row.state)
        self.take(row)

    def take(self, row: FlowRow) -> None:
        """Believe this newer row."""
        self.row = row
        self.data = dict(row.data)
