"""SQL of the overview: the rows of a disk made anew from the books, and what scans of the storage found.

Whoever changes what a row shows calls `refresh`; the rows are made at the end of the same transaction, once. Merges of
two disks of one snapshot change each other's rows: on PostgreSQL whoever writes rows takes one lock first, as the last
lock of its transaction, so that two never insert the same row, and never wait for each other. Sizes are -1 and
times 1970 where nobody has seen them.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from services.snapshots import chain
from services.snapshots.tables import (
    LONG,
    WORDS,
    disk_locks,
    disks,
    leftovers,
    overview,
    scans,
    snapshot_disks,
    snapshots,
    vm_names,
    volumes,
)

UNSEEN, UNSEEN_TIME = -1, datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_WAITING = "overview"  # in a session: the disks whose rows are made before it commits
_LOCK = 0x6F766572  # of this table alone
DAMAGED = "damaged_volume"


# -- rows -------------------------------------------------------------------------------------------------


def refresh(session: Session, disk_ids: Iterable[str]) -> None:
    """Make the rows of these disks anew before the transaction commits."""
    waiting: set[str] | None = session.info.get(_WAITING)
    if waiting is None:
        waiting = session.info[_WAITING] = set()
        sa.event.listen(session, "before_commit", _refresh_waiting, once=True)
    waiting.update(disk_ids)


def _refresh_waiting(session: Session) -> None:
    refresh_now(session, session.info.pop(_WAITING, ()))


def _alone(session: Session) -> None:
    """SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def refresh_now(session: Session, disk_ids: Iterable[str]) -> int:
    """Make the rows of these disks anew; answers how many there are. The last thing of a transaction."""
    wanted = sorted(set(disk_ids))
    _alone(session)
    session.execute(sa.delete(overview).where(overview.c.disk_id.in_(wanted)))
    rows = [row for disk in session.execute(_disks(wanted)).all() for row in _rows(session, disk)]
    if rows:
        session.execute(overview.insert(), rows)
    return len(rows)


def _disks(disk_ids: Sequence[str]) -> sa.Select[Any]:
    joined = disks.outerjoin(vm_names, vm_names.c.id == disks.c.vm_id).outerjoin(
        disk_locks, disk_locks.c.disk_id == disks.c.id
    )
    shown = (disks, vm_names.c.name.label("vm_name"), disk_locks.c.flow_id)
    return sa.select(*shown).select_from(joined).where(disks.c.id.in_(disk_ids))


def _rows(session: Session, disk: Any) -> list[dict[str, Any]]:
    joined = snapshot_disks.join(snapshots, snapshots.c.id == snapshot_disks.c.snapshot_id)
    query = sa.select(snapshots, snapshot_disks.c.volume_id).select_from(joined)
    held = session.execute(query.where(snapshot_disks.c.disk_id == disk.id)).all()
    if not held:
        return []
    known = {row.id: row for row in session.execute(sa.select(volumes).where(volumes.c.disk_id == disk.id))}
    ids = _chain(known, disk.active_id)
    damaged = _damaged(session, disk.id)
    common = {"disk_id": disk.id, "domain_id": disk.domain_id, "vm_id": disk.vm_id, "vm_name": disk.vm_name or ""}
    made = [
        {
            **common,
            "alias": disk.alias,
            "volume_id": row.volume_id,
            "snapshot_id": row.id,
            "description": row.description,
            "taken_at": row.created_at,
            "made_at": _made_at(known, row.volume_id),
            "size": _size(known, row.volume_id),
            "returns": _size(known, _above(ids, row.volume_id)),
            "depth": ids.index(row.volume_id) if row.volume_id in ids else 0,
            "layers": max(1, len(ids)),
            **_state(row, disk, ids, damaged),
        }
        for row in held
    ]
    return [{**row, **{start: (row[name] or "")[:WORDS] for name, start in LONG.items()}} for row in made]


def _chain(known: Mapping[str, Any], active_id: str) -> tuple[str, ...]:
    """First volume first; nothing for books that form no chain."""
    parents = {id_: row.parent_id for id_, row in known.items() if not row.dropped}
    try:
        return chain.order(parents, active_id)
    except ValueError:
        return ()


def _damaged(session: Session, disk_id: str) -> dict[str, str]:
    """What the last scan found wrong with volumes of a disk."""
    query = sa.select(leftovers.c.volume_id, leftovers.c.message)
    rows = session.execute(query.where(leftovers.c.disk_id == disk_id, leftovers.c.code == DAMAGED))
    return dict(rows.tuples().all())


def _above(ids: Sequence[str], volume_id: str) -> str | None:
    place = ids.index(volume_id) + 1 if volume_id in ids else len(ids)
    return ids[place] if place < len(ids) else None


def _size(known: Mapping[str, Any], volume_id: str | None) -> int:
    size = known[volume_id].actual_size if volume_id is not None and volume_id in known else None
    return UNSEEN if size is None else int(size)


def _made_at(known: Mapping[str, Any], volume_id: str) -> datetime.datetime:
    made_at: datetime.datetime | None = known[volume_id].created_at if volume_id in known else None
    return made_at or UNSEEN_TIME


def _state(row: Any, disk: Any, ids: Sequence[str], damaged: Mapping[str, str]) -> dict[str, Any]:
    """`state`, and the `reason` why it cannot be removed."""
    if row.state == "creating":
        return {"state": "creating", "reason": "It is being taken."}
    if disk.flow_id is not None:
        state = "removing" if row.state == "removing" else "busy"
        return {"state": state, "reason": f"Job {disk.flow_id} works on the disk."}
    touched = (row.volume_id, _above(ids, row.volume_id) or "")
    problem = next((damaged[id_] for id_ in touched if id_ in damaged), None)
    if problem is None and row.volume_id not in ids:
        problem = f"The books have no chain with it: drystone doctor disk {disk.id}"
    if problem is not None:
        return {"state": "damaged", "reason": problem}
    reason = "The disk is plugged into no VM." if disk.vm_id is None else None
    return {"state": "ok", "reason": reason}


# -- what the rows follow ---------------------------------------------------------------------------------


def of_volumes(session: Session, volume_ids: Collection[str]) -> list[str]:
    """The disks of these volumes."""
    query = sa.select(volumes.c.disk_id).where(volumes.c.id.in_(list(volume_ids))).distinct()
    return list(session.scalars(query))


def of_snapshot(session: Session, snapshot_id: str) -> list[str]:
    query = sa.select(snapshot_disks.c.disk_id).where(snapshot_disks.c.snapshot_id == snapshot_id)
    return list(session.scalars(query))


def of_flow(session: Session, flow_id: str) -> list[str]:
    """The disks that a flow has locked."""
    return list(session.scalars(sa.select(disk_locks.c.disk_id).where(disk_locks.c.flow_id == flow_id)))


def name_vms(session: Session, names: Mapping[str, str]) -> None:
    """Follow inventory's names."""
    _alone(session)
    query = sa.select(vm_names.c.id, vm_names.c.name).where(vm_names.c.id.in_(list(names)))
    known = dict(session.execute(query).tuples().all())
    for vm_id, name in names.items():
        if vm_id not in known:
            session.execute(vm_names.insert().values(id=vm_id, name=name))
        elif known[vm_id] != name:
            session.execute(sa.update(vm_names).where(vm_names.c.id == vm_id).values(name=name))
        else:
            continue
        session.execute(sa.update(overview).where(overview.c.vm_id == vm_id).values(vm_name=name))


def forget_vm(session: Session, vm_id: str) -> None:
    session.execute(sa.delete(vm_names).where(vm_names.c.id == vm_id))


def missing(session: Session, limit: int) -> list[str]:
    """Disks with snapshots and without rows: those that were there before the overview was."""
    joined = snapshot_disks.outerjoin(overview, overview.c.volume_id == snapshot_disks.c.volume_id)
    query = sa.select(snapshot_disks.c.disk_id).select_from(joined).where(overview.c.volume_id.is_(None))
    return list(session.scalars(query.distinct().order_by(snapshot_disks.c.disk_id).limit(limit)))


def disks_on(session: Session, domain_id: str) -> set[str]:
    return set(session.scalars(sa.select(disks.c.id).where(disks.c.domain_id == domain_id)))


def shown_on(session: Session, domain_id: str) -> set[str]:
    """The disks that have rows there."""
    return set(session.scalars(sa.select(overview.c.disk_id).where(overview.c.domain_id == domain_id).distinct()))


# -- what the last scan of a domain found ------------------------------------------------------------------

LEFTOVER = ("code", "message", "action", "disk_id", "volume_id", "path", "size")


def leftovers_on(session: Session, domain_id: str) -> list[dict[str, Any]]:
    """What the last scan found."""
    query = sa.select(*(leftovers.c[name] for name in LEFTOVER)).where(leftovers.c.domain_id == domain_id)
    return [dict(row) for row in session.execute(query.order_by(leftovers.c.number)).mappings()]


def keep_leftovers(
    session: Session, domain_id: str, found: Sequence[Mapping[str, Any]], moment: datetime.datetime
) -> None:
    """In place of what the scan before found."""
    _alone(session)
    session.execute(sa.delete(leftovers).where(leftovers.c.domain_id == domain_id))
    session.execute(sa.delete(scans).where(scans.c.domain_id == domain_id))
    session.execute(scans.insert().values(domain_id=domain_id, scanned_at=moment))
    rows = [{"domain_id": domain_id, "number": number, **one} for number, one in enumerate(found, 1)]
    if rows:
        session.execute(leftovers.insert(), rows)
