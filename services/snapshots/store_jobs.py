"""SQL of jobs and merges. Every function takes the caller's transaction."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis.tables import flows
from contracts import errors
from services.snapshots import store
from services.snapshots.plan import MergePlan
from services.snapshots.tables import gate, jobs, merges

OPEN = ("running", "undoing", "stuck")
BUSY = ("running", "undoing")


@dataclass(frozen=True)
class JobRow:
    """A flow as users see it. `past`: beyond its point of no return. `behind`: its copy does not get nearer to its end.
    `offline`: the VM is down while it is copied. `told_at`: when its progress was last told."""

    id: str
    kind: str
    parent_id: str | None
    vm_id: str | None
    snapshot_id: str | None
    disk_id: str | None
    user: str
    description: str
    body_hash: str
    state: str
    step: str
    past: bool
    cancelling: bool
    cur: int
    end: int
    rate: int
    behind: bool
    offline: bool
    reason: dict[str, Any] | None
    action: str | None
    result: dict[str, Any] | None
    version: int
    created_at: datetime.datetime
    finished_at: datetime.datetime | None
    told_at: datetime.datetime | None

    @property
    def open(self) -> bool:
        return self.state in OPEN


@dataclass(frozen=True)
class MergeRow:
    """One merge of a disk, the `position`th of its chain in its removal. Bytes everywhere; `before`: what its end that
    stays took when it was planned. `let_in`: its flow was started (it waits for a place before)."""

    id: str
    removal_id: str
    vm_id: str
    disk_id: str
    position: int
    base_id: str
    top_id: str
    child_id: str | None
    between: list[str]
    pull: bool
    below_id: str | None
    note: str
    host_id: str
    domain_id: str
    domain_path: str
    reserve: int
    bandwidth: int
    let_in: bool
    planned: bool
    copy_bytes: int
    needs: int
    returns: int
    before: int
    bytes_merged: int
    bytes_returned: int
    stall: dict[str, Any] | None
    recorded: bool
    discarded: bool

    @property
    def plan(self) -> MergePlan:
        ends = (self.base_id, self.top_id, self.child_id)
        sizes = (self.copy_bytes, self.needs, self.returns)
        way = (self.pull, self.below_id, self.note)
        return MergePlan(self.vm_id, self.disk_id, *ends, *sizes, tuple(self.between), *way)


_JOB = [jobs.c[field.name] for field in dataclasses.fields(JobRow)]
_MERGE = [merges.c[field.name] for field in dataclasses.fields(MergeRow)]

# -- jobs -------------------------------------------------------------------------------------------------


def find(session: Session, job_id: str) -> JobRow | None:
    row = session.execute(sa.select(*_JOB).where(jobs.c.id == job_id)).first()
    return JobRow(*row) if row else None


def job(session: Session, job_id: str) -> JobRow:
    """Raises NotFound."""
    row = find(session, job_id)
    if row is None:
        raise errors.NotFound(kind="job", id=job_id)
    return row


def add(session: Session, **values: Any) -> None:
    """A new job in state running."""
    bare: dict[str, Any] = {"state": "running", "past": False, "cancelling": False, "version": 1}
    session.execute(jobs.insert().values({**bare, **dict.fromkeys(("cur", "end", "rate"), 0), **values}))


def change(session: Session, job_id: str, **changes: Any) -> JobRow:
    """Raises NotFound."""
    query = sa.update(jobs).where(jobs.c.id == job_id).values(version=jobs.c.version + 1, **changes)
    row = session.execute(query.returning(*_JOB)).first()
    if row is None:
        raise errors.NotFound(kind="job", id=job_id)
    return JobRow(*row)


def children(session: Session, parent_id: str) -> list[JobRow]:
    """The merges of a removal as jobs, by disk in their order."""
    joined = jobs.join(merges, merges.c.id == jobs.c.id)
    query = sa.select(*_JOB).select_from(joined).where(jobs.c.parent_id == parent_id)
    query = query.order_by(merges.c.disk_id, merges.c.position)
    return [JobRow(*row) for row in session.execute(query)]


def list_jobs(session: Session, request: Mapping[str, Any]) -> tuple[list[JobRow], str | None, int]:
    where = [jobs.c[key] == request[key] for key in ("vm_id", "parent_id", "state") if request[key]]
    rows, following, total = store.page(session, jobs, where, request["after"], request["limit"], newest=True)
    return [_job_of(row) for row in rows], following, total


def working_on(session: Session, vm_id: str) -> list[str]:
    """Flows that look at this VM: its merges that were let in and its creates."""
    query = sa.select(jobs.c.id).where(jobs.c.vm_id == vm_id, jobs.c.state.in_(BUSY), jobs.c.step != "waiting")
    return list(session.scalars(query))


def _job_of(row: Any) -> JobRow:
    return JobRow(**{field.name: getattr(row, field.name) for field in dataclasses.fields(JobRow)})


# -- merges -----------------------------------------------------------------------------------------------


def merge(session: Session, merge_id: str) -> MergeRow:
    """Raises NotFound."""
    row = session.execute(sa.select(*_MERGE).where(merges.c.id == merge_id)).first()
    if row is None:
        raise errors.NotFound(kind="merge", id=merge_id)
    return MergeRow(*row)


def add_merge(session: Session, **values: Any) -> None:
    numbers = dict.fromkeys(("before", "bytes_merged", "bytes_returned"), 0)
    flags = dict.fromkeys(("let_in", "planned", "recorded", "discarded"), False)
    session.execute(merges.insert().values({**numbers, **flags, **values}))


def change_merge(session: Session, merge_id: str, **changes: Any) -> None:
    session.execute(sa.update(merges).where(merges.c.id == merge_id).values(**changes))


def merges_of(session: Session, removal_id: str) -> list[MergeRow]:
    query = sa.select(*_MERGE).where(merges.c.removal_id == removal_id)
    query = query.order_by(merges.c.disk_id, merges.c.position)
    return [MergeRow(*row) for row in session.execute(query)]


def merging(session: Session, host_id: str, disk_id: str) -> MergeRow | None:
    """The merge that works on this disk of this host, if any."""
    joined = merges.join(jobs, jobs.c.id == merges.c.id)
    where = (merges.c.disk_id == disk_id, merges.c.host_id == host_id, merges.c.let_in, jobs.c.state.in_(OPEN))
    row = session.execute(sa.select(*_MERGE).select_from(joined).where(*where)).first()
    return MergeRow(*row) if row else None


def list_merges(session: Session, request: Mapping[str, Any]) -> tuple[list[tuple[MergeRow, JobRow]], str | None, int]:
    """Newest first."""
    where = [jobs.c.kind == "merge"]
    if request["removal_id"]:
        where.append(jobs.c.parent_id == request["removal_id"])
    if request["disk_id"]:
        where.append(jobs.c.disk_id == request["disk_id"])
    rows, following, total = store.page(session, jobs, where, request["after"], request["limit"], newest=True)
    found = {row.id: MergeRow(*row) for row in session.execute(sa.select(*_MERGE).where(merges.c.id.in_(_ids(rows))))}
    return [(found[row.id], _job_of(row)) for row in rows], following, total


def _ids(rows: Sequence[Any]) -> list[str]:
    return [row.id for row in rows]


def claim(session: Session, flow_id: str) -> int:
    """The number of the flow's present claim, for an ask that a door makes beside the flow; at least 1."""
    return max(1, session.execute(sa.select(flows.c.claim).where(flows.c.id == flow_id)).scalar() or 0)


# -- the places that merges wait for ----------------------------------------------------------------------


def shut_gate(session: Session) -> None:
    """One transaction at a time lets merges in (SQLite has one writer anyway)."""
    session.execute(sa.select(gate.c.id).with_for_update()).all()


def waiting(session: Session) -> list[MergeRow]:
    """Merges that wait for a place, in the order in which they came."""
    joined = merges.join(jobs, jobs.c.id == merges.c.id)
    query = sa.select(*_MERGE).select_from(joined).where(~merges.c.let_in, jobs.c.state == "running")
    query = query.order_by(jobs.c.created_at, merges.c.position, jobs.c.id)
    return [MergeRow(*row) for row in session.execute(query)]


def working(session: Session) -> set[str]:
    """The disks on which a merge is at work, or is stuck: the next one of their chain waits."""
    joined = merges.join(jobs, jobs.c.id == merges.c.id)
    query = sa.select(merges.c.disk_id).select_from(joined).where(merges.c.let_in, jobs.c.state.in_(OPEN))
    return set(session.scalars(query))


def left_of_disk(session: Session, removal_id: str, disk_id: str) -> int:
    """How many merges of a removal on one disk have not ended."""
    joined = merges.join(jobs, jobs.c.id == merges.c.id)
    query = sa.select(sa.func.count()).select_from(joined)
    where = (merges.c.removal_id == removal_id, merges.c.disk_id == disk_id, jobs.c.state.in_(OPEN))
    return int(session.execute(query.where(*where)).scalar_one())


def others_at_work(session: Session, domain_id: str, besides: str) -> bool:
    """Whether another merge on the domain is at work that will give space back when it ends."""
    joined = merges.join(jobs, jobs.c.id == merges.c.id)
    where = (merges.c.domain_id == domain_id, merges.c.id != besides, merges.c.planned, jobs.c.state.in_(BUSY))
    return session.execute(sa.select(merges.c.id).select_from(joined).where(*where).limit(1)).first() is not None


def taken(session: Session, column: str) -> dict[str, int]:
    """How many merges are at work by `host_id` or `domain_id`."""
    by = merges.c[column]
    joined = merges.join(jobs, jobs.c.id == merges.c.id)
    query = sa.select(by, sa.func.count()).select_from(joined).where(merges.c.let_in, jobs.c.state.in_(BUSY))
    return dict(session.execute(query.group_by(by)).tuples().all())


def promised(session: Session, domain_id: str, besides: str) -> int:
    """Bytes by which what stays of the other merges on a domain may still grow."""
    joined = merges.join(jobs, jobs.c.id == merges.c.id)
    query = sa.select(merges.c.needs, jobs.c.end, jobs.c.cur).select_from(joined)
    where = (merges.c.domain_id == domain_id, merges.c.id != besides, merges.c.let_in, jobs.c.state.in_(BUSY))
    found = session.execute(query.where(*where, merges.c.planned, ~merges.c.recorded))
    # a job counts the disk's bytes that it went over, holes too: they say how much is left, not how much was written
    return sum(min(needs, max(0, end - cur)) for needs, end, cur in found)
