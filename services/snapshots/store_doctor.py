"""SQL of the doctor: what the database has of a disk, and the one transaction that makes it follow the storage."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import logs, outbox
from chassis.database import after_commit
from contracts import errors
from contracts import snapshots as promises
from services.snapshots import store
from services.snapshots.books import Books, Holder, Line
from services.snapshots.repair import Plan
from services.snapshots.tables import disk_locks, disks, snapshot_disks, snapshots, volumes

FOUND = "Found by drystone doctor"
_log = logs.get("snapshots")


def books(session: Session, told: Mapping[str, Any]) -> Books:
    """What the database has of a disk (inventory's Disk), whatever is wrong with it."""
    disk_id = told["id"]
    busy = session.execute(sa.select(disk_locks.c.flow_id).where(disk_locks.c.disk_id == disk_id)).scalar()
    known = store.disk(session, disk_id)
    if known is None:
        first = told["first_volume_id"]
        return Books(disk_id, told["vm_id"], first, {first: Line(None)}, {}, busy, known=False)
    found = session.execute(sa.select(volumes).where(volumes.c.disk_id == disk_id))
    lines = {row.id: Line(row.parent_id, row.dropped, row.actual_size) for row in found}
    return Books(disk_id, told["vm_id"], known.active_id, lines, _holders(session, disk_id), busy)


def _holders(session: Session, disk_id: str) -> dict[str, Holder]:
    """The snapshot that names a volume, by volume."""
    joined = snapshot_disks.join(snapshots, snapshots.c.id == snapshot_disks.c.snapshot_id)
    plain = (snapshot_disks.c.volume_id, snapshots.c.id, snapshots.c.description, snapshots.c.restorable)
    query = sa.select(*plain).select_from(joined).where(snapshot_disks.c.disk_id == disk_id)
    rows = session.execute(query.order_by(snapshots.c.created_at)).all()
    sizes = {row.id: len(store.disks_of(session, row.id)) for row in rows}
    return {row.volume_id: Holder(row.id, row.description, row.restorable, sizes[row.id]) for row in rows}


def apply(  # noqa: PLR0917 - one change, with all that it rests on
    session: Session, told: Mapping[str, Any], seen: Books, plan: Plan, now: datetime, user: str
) -> None:
    """Make the database follow the storage, if it is still as it was `seen`. Raises DiskBusy, DiagnosisChanged."""
    flow_id = str(uuid.uuid4())
    store.lock(session, [seen.disk_id], flow_id, seen.vm_id or "")  # no job begins before this is committed
    store.know(session, told)
    now_has = replace(books(session, told), busy=None)
    if now_has != replace(seen, busy=None, known=True):
        raise errors.DiagnosisChanged(disk_id=seen.disk_id, expect="that was read")
    _set_chain(session, seen, plan)
    _set_snapshots(session, seen, plan, now)
    store.unlock(session, flow_id)
    news = {"disk_id": seen.disk_id, "vm_id": seen.vm_id, "user": user, "changes": list(plan.changes)}
    outbox.tell(session, promises.disk_repaired, news)
    sentence = f"disk {seen.disk_id}: its records follow the storage, repaired by {user}: {' '.join(plan.changes)}"
    after_commit(session, lambda: _log.info(sentence, disk_id=seen.disk_id, user=user))


def _set_chain(session: Session, seen: Books, plan: Plan) -> None:
    """Rows and active volume as the chain is; what left it is dropped, or forgotten where it is gone."""
    for parent, child in zip((None, *plan.truth), plan.truth, strict=False):
        if child not in seen.volumes:
            store.add_volume(session, seen.disk_id, child, parent)
        here = sa.update(volumes).where(volumes.c.id == child)
        session.execute(here.values(parent_id=parent, dropped=False))
    session.execute(sa.update(disks).where(disks.c.id == seen.disk_id).values(active_id=plan.truth[-1]))
    session.execute(sa.update(volumes).where(volumes.c.id.in_(plan.drop)).values(dropped=True))
    session.execute(sa.delete(volumes).where(volumes.c.id.in_(plan.forget)))


def _set_snapshots(session: Session, seen: Books, plan: Plan, now: datetime) -> None:
    for volume_id in plan.lost:
        _lose(session, seen.disk_id, seen.holders[volume_id].snapshot_id)
    for volume_id in plan.mixed:
        store.change_snapshot(session, seen.holders[volume_id].snapshot_id, restorable=False)
    for volume_id in plan.found:
        snapshot_id = str(uuid.uuid5(uuid.UUID(volume_id), FOUND))
        row = {"id": snapshot_id, "vm_id": seen.vm_id, "description": FOUND, "job_id": None, "created_at": now}
        store.add_snapshot(session, row, {seen.disk_id: volume_id})
        # nobody knows what happened to it meanwhile
        store.change_snapshot(session, snapshot_id, state="ok", restorable=False)


def _lose(session: Session, disk_id: str, snapshot_id: str) -> None:
    """A snapshot loses a disk, and goes with its last one."""
    here = (snapshot_disks.c.disk_id == disk_id, snapshot_disks.c.snapshot_id == snapshot_id)
    session.execute(sa.delete(snapshot_disks).where(*here))
    if store.disks_of(session, snapshot_id):
        store.change_snapshot(session, snapshot_id, partly_removed=True, restorable=False)
    else:
        store.delete_snapshot(session, snapshot_id)
