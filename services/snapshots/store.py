"""SQL of chains, snapshots and disk locks. Every function takes the caller's transaction."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import clock, outbox
from contracts import errors
from contracts import snapshots as promises
from services.snapshots import chain, leaves, store_overview
from services.snapshots.plan import MergePlan
from services.snapshots.tables import disk_locks, disks, snapshot_disks, snapshots, volumes

# -- pages ------------------------------------------------------------------------------------------------


def page(
    session: Session, table: sa.Table, where: Sequence[Any], after: str | None, limit: int, *, newest: bool
) -> tuple[list[Any], str | None, int]:
    """Rows of one page by (created_at, id), the cursor of the next page, and the count of all rows.

    Raises BadRequest for a cursor that is none of ours.
    """
    when, key = table.c.created_at, table.c.id
    total = session.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one()
    query = sa.select(table).where(*where)
    if after is not None:
        moment, last = _cursor(after)
        if newest:
            query = query.where(sa.or_(when < moment, sa.and_(when == moment, key < last)))
        else:
            query = query.where(sa.or_(when > moment, sa.and_(when == moment, key > last)))
    ordered = query.order_by(when.desc(), key.desc()) if newest else query.order_by(when, key)
    rows = list(session.execute(ordered.limit(limit + 1)))
    more = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], f"{clock.iso(more.created_at)}|{more.id}" if more is not None else None, total


def _cursor(text: str) -> tuple[datetime.datetime, str]:
    moment, _, key = text.partition("|")
    try:
        return clock.parse(moment), key
    except ValueError:
        raise errors.BadRequest(errors={"after": ["Not a cursor of this list."]}) from None


# -- disks and chains -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiskRow:
    id: str
    vm_id: str | None
    alias: str
    domain_id: str
    active_id: str


def disk(session: Session, disk_id: str) -> DiskRow | None:
    found = session.execute(sa.select(disks).where(disks.c.id == disk_id)).first()
    return DiskRow(*found) if found else None


def know(session: Session, told: Mapping[str, Any]) -> None:
    """Take a disk (inventory's Disk) into our books, if it is new, with its first volume as its chain."""
    if disk(session, told["id"]) is not None:
        return
    first = told["first_volume_id"]
    row = {"id": told["id"], "vm_id": told["vm_id"], "alias": told["alias"], "domain_id": told["domain_id"]}
    session.execute(disks.insert().values(**row, active_id=first))
    add_volume(session, told["id"], first, None)


def disk_changed(session: Session, told: Mapping[str, Any]) -> None:
    """Follow inventory in what we copied from it."""
    changes = {"vm_id": told["vm_id"], "alias": told["alias"], "domain_id": told["domain_id"]}
    session.execute(sa.update(disks).where(disks.c.id == told["id"]).values(changes))
    store_overview.refresh(session, [told["id"]])


def add_volume(session: Session, disk_id: str, volume_id: str, parent_id: str | None) -> None:
    session.execute(volumes.insert().values(id=volume_id, disk_id=disk_id, parent_id=parent_id, dropped=False))


def chain_of(session: Session, disk_id: str) -> tuple[str, ...]:
    """First volume first; empty for a disk that is not in our books. Raises ChainDiffers for rows that form none."""
    row = disk(session, disk_id)
    if row is None:
        return ()
    query = sa.select(volumes.c.id, volumes.c.parent_id).where(volumes.c.disk_id == disk_id, ~volumes.c.dropped)
    try:
        return chain.order(dict(session.execute(query).tuples().all()), row.active_id)
    except ValueError as fault:
        raise errors.ChainDiffers(disk_id=disk_id, reason=f"in the database {fault}") from None


def chain_rows(session: Session, disk_id: str) -> list[dict[str, Any]]:
    """contracts.snapshots.ChainVolume of every volume, first volume first."""
    owners = snapshot_disks.join(snapshots, snapshots.c.id == snapshot_disks.c.snapshot_id)
    named = sa.select(snapshot_disks.c.volume_id, snapshots.c.id, snapshots.c.description).select_from(owners)
    owner = {row[0]: (row[1], row[2]) for row in session.execute(named.where(snapshot_disks.c.disk_id == disk_id))}
    found = {row.id: row for row in session.execute(sa.select(volumes).where(volumes.c.disk_id == disk_id))}
    ids = chain_of(session, disk_id)
    return [
        {
            "volume_id": volume_id,
            "parent_id": found[volume_id].parent_id,
            "snapshot_id": None if volume_id == ids[-1] else owner.get(volume_id, (None, ""))[0],
            "description": "" if volume_id == ids[-1] else owner.get(volume_id, (None, ""))[1],
            "active": volume_id == ids[-1],
            "actual_size": found[volume_id].actual_size,
        }
        for volume_id in ids
    ]


def record_merge(session: Session, plan: MergePlan) -> None:
    """The image of top lives in base from now on: what named top names base, and the snapshots whose volumes went down
    have this disk no more. (After a pull it lives where it did, and top stands on what base stood on.)"""
    gone = snapshot_disks.c.volume_id.in_(plan.removed)
    removed = list(session.scalars(sa.select(snapshot_disks.c.snapshot_id).where(gone)))
    session.execute(sa.delete(snapshot_disks).where(gone))
    heir = snapshot_disks.c.volume_id == plan.top_id
    above = session.execute(sa.select(snapshot_disks.c.snapshot_id).where(heir)).scalar()
    if plan.pull:
        below = session.execute(sa.select(volumes.c.parent_id).where(volumes.c.id == plan.base_id)).scalar()
        session.execute(sa.update(volumes).where(volumes.c.id == plan.top_id).values(parent_id=below))
    else:
        session.execute(sa.update(snapshot_disks).where(heir).values(volume_id=plan.base_id))
    if plan.active:
        session.execute(sa.update(disks).where(disks.c.id == plan.disk_id).values(active_id=plan.base_id))
    elif not plan.pull:
        session.execute(sa.update(volumes).where(volumes.c.id == plan.child_id).values(parent_id=plan.base_id))
    session.execute(sa.update(volumes).where(volumes.c.id.in_(plan.dropped)).values(dropped=True))
    for snapshot_id in (*removed, *(() if above is None else (above,))):
        change_snapshot(session, snapshot_id)
    store_overview.refresh(session, [plan.disk_id])


def forget_volumes(session: Session, volume_ids: Iterable[str]) -> None:
    session.execute(sa.delete(volumes).where(volumes.c.id.in_(list(volume_ids)), volumes.c.dropped))


# -- locks ------------------------------------------------------------------------------------------------


def lock(session: Session, disk_ids: Collection[str], flow_id: str, vm_id: str) -> None:
    """One job per disk: take these disks or raise DiskBusy; the caller's transaction is then of no use any more."""
    for disk_id in sorted(disk_ids):
        holder = session.execute(sa.select(disk_locks.c.flow_id).where(disk_locks.c.disk_id == disk_id)).scalar()
        if holder is not None:
            raise errors.DiskBusy(disk_id=disk_id, flow_id=holder)
        try:
            session.execute(disk_locks.insert().values(disk_id=disk_id, flow_id=flow_id, vm_id=vm_id))
        except sa.exc.IntegrityError:  # PostgreSQL: another instance was faster by a breath
            raise errors.DiskBusy(disk_id=disk_id, flow_id="another request") from None
    store_overview.refresh(session, disk_ids)


def refuse_locked(session: Session, disk_ids: Iterable[str]) -> None:
    """Raises DiskBusy if a job works on one of these disks."""
    held = session.execute(sa.select(disk_locks).where(disk_locks.c.disk_id.in_(list(disk_ids)))).first()
    if held is not None:
        raise errors.DiskBusy(disk_id=held.disk_id, flow_id=held.flow_id)


def holders(session: Session, disk_ids: Iterable[str]) -> dict[str, str]:
    """disk id -> the job that works on it."""
    found = session.execute(sa.select(disk_locks).where(disk_locks.c.disk_id.in_(list(disk_ids))))
    return {row.disk_id: row.flow_id for row in found}


def unlock(session: Session, flow_id: str, disk_id: str | None = None) -> None:
    """Free one disk of a flow, or all of them."""
    where = [disk_locks.c.flow_id == flow_id]
    if disk_id is not None:
        where.append(disk_locks.c.disk_id == disk_id)
    touched = [disk_id] if disk_id is not None else store_overview.of_flow(session, flow_id)
    session.execute(sa.delete(disk_locks).where(*where))
    store_overview.refresh(session, touched)


def refuse_busy(session: Session, id_: str) -> None:
    """Raises DiskBusy while any job works on the VM, or on the disk, that has this id."""
    of_it = sa.or_(disk_locks.c.vm_id == id_, disk_locks.c.disk_id == id_)
    held = session.execute(sa.select(disk_locks).where(of_it).order_by(disk_locks.c.disk_id))
    row = held.first()
    if row is not None:
        raise errors.DiskBusy(disk_id=row.disk_id, flow_id=row.flow_id)


# -- snapshots --------------------------------------------------------------------------------------------


def add_snapshot(session: Session, row: Mapping[str, Any], leaves: Mapping[str, str]) -> None:
    """A snapshot in state creating. `leaves`: disk id -> the volume that it will name. Raises AlreadyExists."""
    if session.execute(sa.select(snapshots.c.id).where(snapshots.c.id == row["id"])).first():
        raise errors.AlreadyExists(kind="snapshot", field="id", value=row["id"])
    bare = {"state": "creating", "restorable": True, "partly_removed": False, "quiesced": False, "live": False}
    session.execute(snapshots.insert().values(**bare, version=1, **row))
    for disk_id, volume_id in leaves.items():
        session.execute(snapshot_disks.insert().values(snapshot_id=row["id"], disk_id=disk_id, volume_id=volume_id))
    store_overview.refresh(session, leaves)
    outbox.tell(session, promises.snapshot_changed, snapshot(session, row["id"]))


def finish_snapshot(session: Session, snapshot_id: str, leaves: Iterable[leaves.Leaf], **how: Any) -> None:
    """The new volumes are the leaves."""
    for leaf in leaves:
        if session.execute(sa.select(volumes.c.id).where(volumes.c.id == leaf.volume_id)).first() is None:
            add_volume(session, leaf.disk_id, leaf.volume_id, leaf.parent_id)
        session.execute(sa.update(disks).where(disks.c.id == leaf.disk_id).values(active_id=leaf.volume_id))
    change_snapshot(session, snapshot_id, state="ok", job_id=None, **how)


def change_snapshot(session: Session, snapshot_id: str, **changes: Any) -> None:
    """Change a snapshot and tell it; nothing happens to one that is gone."""
    query = sa.update(snapshots).where(snapshots.c.id == snapshot_id)
    done: Any = session.execute(query.values(version=snapshots.c.version + 1, **changes))
    if done.rowcount:
        store_overview.refresh(session, store_overview.of_snapshot(session, snapshot_id))
        outbox.tell(session, promises.snapshot_changed, snapshot(session, snapshot_id))


def claim_snapshot(session: Session, snapshot_id: str, removal_id: str) -> None:
    """It goes with this removal and no other. Raises DiskBusy: another was faster (PostgreSQL has several writers)."""
    free = sa.and_(snapshots.c.id == snapshot_id, snapshots.c.state == "ok")
    query = sa.update(snapshots).where(free).values(state="removing", job_id=removal_id)
    taken: Any = session.execute(query)
    if not taken.rowcount:
        disk_id = min(disks_of(session, snapshot_id), default="")
        raise errors.DiskBusy(disk_id=disk_id, flow_id="another removal of its snapshot")
    change_snapshot(session, snapshot_id)


def delete_snapshot(session: Session, snapshot_id: str) -> None:
    """Forget a snapshot and tell it; nothing happens to one that is gone."""
    vm_id = session.execute(sa.select(snapshots.c.vm_id).where(snapshots.c.id == snapshot_id)).scalar()
    if vm_id is not None:
        touched = store_overview.of_snapshot(session, snapshot_id)
        session.execute(sa.delete(snapshot_disks).where(snapshot_disks.c.snapshot_id == snapshot_id))
        session.execute(sa.delete(snapshots).where(snapshots.c.id == snapshot_id))
        store_overview.refresh(session, touched)
        outbox.tell(session, promises.snapshot_deleted, {"id": snapshot_id, "vm_id": vm_id})


def disks_of(session: Session, snapshot_id: str) -> dict[str, str]:
    """disk id -> volume id of what the snapshot still holds."""
    query = sa.select(snapshot_disks.c.disk_id, snapshot_disks.c.volume_id)
    found = session.execute(query.where(snapshot_disks.c.snapshot_id == snapshot_id).order_by(snapshot_disks.c.disk_id))
    return dict(found.tuples().all())


def snapshot(session: Session, snapshot_id: str) -> dict[str, Any]:
    """contracts.snapshots.Snapshot; raises NotFound."""
    row = session.execute(sa.select(snapshots).where(snapshots.c.id == snapshot_id)).first()
    if row is None:
        raise errors.NotFound(kind="snapshot", id=snapshot_id)
    return _snapshots(session, [row])[0]


def list_snapshots(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    where = [snapshots.c.vm_id == request["vm_id"]] if request["vm_id"] else []
    rows, following, total = page(session, snapshots, where, request["after"], request["limit"], newest=False)
    return {"items": _snapshots(session, rows), "next": following, "total": total}


def _snapshots(session: Session, rows: Sequence[Any]) -> list[dict[str, Any]]:
    joined = snapshot_disks.join(disks, disks.c.id == snapshot_disks.c.disk_id).join(
        volumes, volumes.c.id == snapshot_disks.c.volume_id
    )
    query = sa.select(snapshot_disks, disks.c.alias, volumes.c.actual_size).select_from(joined)
    held: dict[str, list[dict[str, Any]]] = {row.id: [] for row in rows}
    for found in session.execute(query.where(snapshot_disks.c.snapshot_id.in_(held)).order_by(disks.c.alias)):
        line = {key: getattr(found, key) for key in ("disk_id", "alias", "volume_id", "actual_size")}
        held[found.snapshot_id].append(line)
    plain = [key for key in snapshots.c.keys() if key != "created_at"]  # noqa: SIM118  a collection of columns
    return [
        {key: getattr(row, key) for key in plain} | {"created_at": clock.iso(row.created_at), "disks": held[row.id]}
        for row in rows
    ]


# -- what inventory deleted -------------------------------------------------------------------------------


def vm_deleted(session: Session, vm_id: str) -> None:
    """The VM's snapshots are gone with it; a disk that outlives it keeps its chain."""
    for snapshot_id in list(session.scalars(sa.select(snapshots.c.id).where(snapshots.c.vm_id == vm_id))):
        delete_snapshot(session, snapshot_id)
    orphaned = list(session.scalars(sa.select(disks.c.id).where(disks.c.vm_id == vm_id)))
    session.execute(sa.update(disks).where(disks.c.vm_id == vm_id).values(vm_id=None))
    store_overview.forget_vm(session, vm_id)
    store_overview.refresh(session, orphaned)


def disk_deleted(session: Session, disk_id: str) -> None:
    """The disk's chain is gone; a snapshot that held nothing else goes too."""
    query = sa.select(snapshot_disks.c.snapshot_id).where(snapshot_disks.c.disk_id == disk_id)
    touched = list(session.scalars(query))
    session.execute(sa.delete(snapshot_disks).where(snapshot_disks.c.disk_id == disk_id))
    session.execute(sa.delete(volumes).where(volumes.c.disk_id == disk_id))
    session.execute(sa.delete(disks).where(disks.c.id == disk_id))
    store_overview.refresh(session, [disk_id])
    for snapshot_id in touched:
        if disks_of(session, snapshot_id):
            change_snapshot(session, snapshot_id)
        else:
            delete_snapshot(session, snapshot_id)
