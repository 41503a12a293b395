"""Jobs as users see them: what `contracts.snapshots.Job` and `Merge` say, made from our rows, told when they change."""

from __future__ import annotations

import datetime
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from chassis import clock, context, outbox
from chassis.steps import DONE, UNDONE, FlowRow
from contracts import errors
from contracts import snapshots as promises
from services.snapshots import store_jobs as store
from services.snapshots import store_removals
from services.snapshots.store_jobs import JobRow, MergeRow

STEPS = {
    "snapshot": ("plan", "switch", "record"),
    "removal": ("merge",),
    "merge": ("waiting", "plan", "extend", "commit", "pivot", "record", "discard"),
}
EVERY = 1.0  # seconds between two news of progress
ENDED = (DONE, UNDONE)


# -- views ------------------------------------------------------------------------------------------------


def view(session: Session, row: JobRow) -> dict[str, Any]:
    """contracts.snapshots.Job."""
    return {
        **{key: getattr(row, key) for key in _PLAIN},
        "steps": _steps(row),
        "progress": progress_of(row),
        "reason": reason(row.reason),
        "cancellable": cancellable(session, row),
        "created_at": clock.iso(row.created_at),
        "finished_at": clock.iso(row.finished_at) if row.finished_at else None,
    }


_PLAIN = (
    *("id", "kind", "parent_id", "vm_id", "snapshot_id", "disk_id", "user", "description"),
    *("state", "step", "action", "result", "version"),
)


def merge_view(merge: MergeRow, row: JobRow, snapshot_ids: list[str]) -> dict[str, Any]:
    """contracts.snapshots.Merge."""
    shared = ("id", "removal_id", "vm_id", "disk_id", "base_id", "top_id", "bytes_merged", "bytes_returned", "stall")
    return {
        **{key: getattr(merge, key) for key in shared},
        "snapshot_ids": snapshot_ids,
        "layers": len(merge.plan.dropped),
        "kind": merge.plan.kind,
        "state": row.state,
        "step": row.step,
        "progress": progress_of(row),
        "reason": reason(row.reason),
        "version": row.version,
    }


def progress_of(row: JobRow) -> dict[str, int | bool]:
    goes_on = row.state == "running"
    said = {"behind": row.behind and goes_on, "offline": row.offline and goes_on}
    return {"cur": row.cur, "end": row.end, "rate": row.rate if goes_on else 0, **said}


def _steps(row: JobRow) -> list[dict[str, str]]:
    names = STEPS[row.kind]
    here = names.index(row.step) if row.step in names else 0
    if row.state == DONE:
        here = len(names)
    words = ["done" if at < here else "running" if at == here else "waiting" for at in range(len(names))]
    return [{"name": name, "state": word} for name, word in zip(names, words, strict=True)]


def reason(wire: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """contracts.snapshots.Reason of a stored problem."""
    if wire is None:
        return None
    problem = errors.from_wire(dict(wire))
    details = {**problem.fields, "first": wire["first"]} if wire.get("first") else dict(problem.fields)
    return {"code": wire["code"], "details": details, "message": str(problem), "hint": problem.advice}


def cancellable(session: Session, row: JobRow) -> bool:
    """May a cancel still do something? A removal may as long as one of its merges may."""
    if row.state not in ("running", "stuck") or row.cancelling:
        return False
    if row.kind == "removal":
        return any(cancellable(session, child) for child in store.children(session, row.id))
    return not row.past


# -- the same request again -------------------------------------------------------------------------------


def body_hash(kind: str, request: Mapping[str, Any]) -> str:
    text = json.dumps([kind, request], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def begun(session: Session, job_id: str, hashed: str) -> dict[str, Any] | None:
    """The job that this very request began before, or None. Raises IdempotencyConflict for another request."""
    row = store.find(session, job_id)
    if row is None:
        return None
    if row.body_hash != hashed:
        raise errors.IdempotencyConflict(id=job_id)
    return view(session, row)


def part_id(removal_id: str, disk_id: str, position: int) -> str:
    """The id of a removal's merge: it follows from the removal's, so that asking twice makes no second one."""
    return str(uuid.uuid5(uuid.UUID(removal_id), disk_id if position == 1 else f"{disk_id}/{position}"))


def user() -> str:
    return context.current().user or "unknown"


# -- news -------------------------------------------------------------------------------------------------


def tell(session: Session, row: JobRow) -> None:
    """Tell a job, and for a merge the merge and the sum of its removal."""
    outbox.tell(session, promises.job_changed, view(session, row))
    if row.kind == "merge":
        finished = promises.merge_finished if row.state in ENDED else promises.merge_changed
        removes = store_removals.snapshots_of(session, [row.id])[row.id]
        outbox.tell(session, finished, merge_view(store.merge(session, row.id), row, removes))


def moved(session: Session, row: FlowRow, now: datetime.datetime, **more: Any) -> JobRow:
    """The flow moved: its job follows, in the same transaction."""
    ended = {"finished_at": now, "cancelling": False} if row.state in ENDED else {}
    changes = {
        "state": row.state,
        "step": row.step,
        "past": row.past,
        "reason": row.reason,
        "action": row.action,
        "cancelling": row.cancel_by is not None,
        **{"behind": False, "offline": False},  # that is said of a copy while it runs
        **ended,
        **more,
    }
    changed = store.change(session, row.id, **changes)
    tell(session, changed)
    return changed


def progress(
    session: Session,
    job_id: str,
    now: datetime.datetime,
    *,
    cur: int,
    end: int,
    rate: int | None,
    force: bool = False,
    offline: bool | None = None,
) -> None:
    """Show how far a merge is, at most once a second unless forced. `rate` None: from the last time it was told;
    `offline` None: as it was."""
    row = store.job(session, job_id)
    turned = offline not in (None, row.offline)
    force, offline = force or turned, row.offline if offline is None else offline
    since = EVERY if row.told_at is None else (now - row.told_at).total_seconds()
    still = (row.cur, row.end) == (cur, end) and rate in (None, row.rate)
    if not row.open or (still and not turned) or (since < EVERY * 0.9 and not force):
        return
    if rate is None:
        rate = max(0, int((cur - row.cur) / since)) if row.told_at and since > 0 else 0
    tell(session, store.change(session, job_id, cur=cur, end=end, rate=rate, offline=offline, told_at=now))
    merge = store.merge(session, job_id)
    # a pull goes over the whole disk, whatever there is to copy
    merged = min(cur, merge.copy_bytes) if merge.pull else cur
    store.change_merge(session, job_id, bytes_merged=max(merge.bytes_merged, merged))
    if row.parent_id is not None:
        sum_up(session, row.parent_id, now, force=force)


def pace(session: Session, job_id: str, now: datetime.datetime, *, behind: bool) -> bool:
    """Say that a merge fell behind what its guest writes, or caught up; answers whether that was new."""
    row = store.job(session, job_id)
    if not row.open or row.behind == behind:
        return False
    row = store.change(session, job_id, behind=behind)
    tell(session, row)
    if behind:
        removes = store_removals.snapshots_of(session, [job_id])[job_id]
        outbox.tell(session, promises.merge_behind, merge_view(store.merge(session, job_id), row, removes))
    if row.parent_id is not None:
        sum_up(session, row.parent_id, now, force=True)
    return True


def sum_up(session: Session, removal_id: str, now: datetime.datetime, *, force: bool = False) -> None:
    """A removal has the sum of its merges, and tells it at most once a second unless forced."""
    row = store.job(session, removal_id)
    if not row.open:
        return
    late = row.told_at is None or (now - row.told_at).total_seconds() >= EVERY * 0.9
    told_at = now if late or force else row.told_at
    row = store.change(session, removal_id, **sums(store.children(session, removal_id)), told_at=told_at)
    if late or force:
        tell(session, row)


def sums(parts: list[JobRow]) -> dict[str, int | bool]:
    """The progress of a removal."""
    busy = [part for part in parts if part.state == "running"]
    sizes = {"cur": sum(part.cur for part in parts), "end": sum(part.end for part in parts)}
    return {**sizes, "rate": sum(part.rate for part in busy), **_said(busy)}


def _said(busy: list[JobRow]) -> dict[str, bool]:
    return {"behind": any(part.behind for part in busy), "offline": any(part.offline for part in busy)}
