"""SQL of removals: what a request names, and what became of it. Every function takes the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import clock
from chassis.tables import flows
from contracts import errors
from services.snapshots.planning import Wanted
from services.snapshots.store_jobs import OPEN
from services.snapshots.tables import disks, jobs, merges, removal_items, snapshot_disks, snapshots


@dataclass(frozen=True)
class Item:
    """One disk of one snapshot; either a merge removes it, or it was refused at the start."""

    snapshot_id: str
    disk_id: str
    vm_id: str
    description: str
    merge_id: str | None
    refusal: dict[str, Any] | None


_ITEM = [removal_items.c[name] for name in ("snapshot_id", "disk_id", "vm_id", "description", "merge_id", "refusal")]


# -- what a request names ---------------------------------------------------------------------------------


def wanted(session: Session, snapshot_ids: Iterable[str], on_domain: str | None = None) -> list[Wanted]:
    """Every disk of these snapshots, in this order; with a domain only those that lie there."""
    ids = list(dict.fromkeys(snapshot_ids))
    joined = snapshot_disks.join(snapshots, snapshots.c.id == snapshot_disks.c.snapshot_id)
    joined = joined.join(disks, disks.c.id == snapshot_disks.c.disk_id)
    columns = (snapshot_disks.c.snapshot_id, snapshot_disks.c.disk_id, snapshots.c.vm_id, snapshot_disks.c.volume_id)
    query = sa.select(*columns, snapshots.c.description).select_from(joined).where(snapshots.c.id.in_(ids))
    if on_domain is not None:
        query = query.where(disks.c.domain_id == on_domain)
    found = [Wanted(*row) for row in session.execute(query.order_by(disks.c.alias, disks.c.id))]
    place = {id_: number for number, id_ in enumerate(ids)}
    return sorted(found, key=lambda one: place[one.snapshot_id])


def matching(session: Session, condition: Mapping[str, Any]) -> list[str]:
    """The snapshots that a filter (contracts.snapshots.SnapshotFilter) matches, the oldest first."""
    where: list[Any] = []
    if condition["vm_id"] is not None:
        where.append(snapshots.c.vm_id == condition["vm_id"])
    if condition["taken_before"] is not None:
        where.append(snapshots.c.created_at < clock.parse(condition["taken_before"]))
    if condition["text"] is not None:
        lowered = sa.func.lower(snapshots.c.description)
        where.append(lowered.contains(condition["text"].lower(), autoescape=True))
    if condition["domain_id"] is not None:
        there = snapshot_disks.join(disks, disks.c.id == snapshot_disks.c.disk_id)
        held = sa.select(snapshot_disks.c.snapshot_id).select_from(there)
        where.append(snapshots.c.id.in_(held.where(disks.c.domain_id == condition["domain_id"])))
    query = sa.select(snapshots.c.id).where(*where).order_by(snapshots.c.created_at, snapshots.c.id)
    return list(session.scalars(query))


def refuse_unknown(session: Session, snapshot_ids: Iterable[str]) -> None:
    """Raises NotFound for the first that does not exist."""
    ids = list(snapshot_ids)
    known = set(session.scalars(sa.select(snapshots.c.id).where(snapshots.c.id.in_(ids))))
    for snapshot_id in ids:
        if snapshot_id not in known:
            raise errors.NotFound(kind="snapshot", id=snapshot_id)


def busy(session: Session, snapshot_ids: Iterable[str]) -> dict[str, str]:
    """snapshot id -> the job that works on it."""
    query = sa.select(snapshots.c.id, snapshots.c.job_id, snapshots.c.state)
    found = session.execute(query.where(snapshots.c.id.in_(list(snapshot_ids)), snapshots.c.state != "ok"))
    return {row.id: row.job_id or f"a job that is {row.state} it" for row in found}


# -- what became of it ------------------------------------------------------------------------------------


def add_items(
    session: Session,
    removal_id: str,
    wanted: Sequence[Wanted],
    merges: Mapping[Wanted, tuple[str, int]],
    refused: Mapping[Wanted, errors.Problem],
) -> None:
    """`wanted` in the order asked for; `merges`: the merge that removes it, and its place among what that removes."""
    for number, one in enumerate(wanted):
        merge_id, place = merges.get(one, (None, 0))
        names = {"snapshot_id": one.snapshot_id, "disk_id": one.disk_id, "vm_id": one.vm_id}
        fate = {"merge_id": merge_id, "place": place, "refusal": refused[one].to_wire() if one in refused else None}
        row = {"removal_id": removal_id, "number": number, "description": one.description}
        session.execute(removal_items.insert().values(**row, **names, **fate))


def items(session: Session, removal_id: str) -> list[Item]:
    """In the order in which they were asked for."""
    query = sa.select(*_ITEM).where(removal_items.c.removal_id == removal_id).order_by(removal_items.c.number)
    return [Item(*row) for row in session.execute(query)]


def first_refusal(session: Session, removal_id: str) -> dict[str, Any] | None:
    return next((item.refusal for item in items(session, removal_id) if item.refusal is not None), None)


def snapshots_of(session: Session, merge_ids: Iterable[str]) -> dict[str, list[str]]:
    """merge id -> the snapshots that it removes from its disk, the oldest first."""
    ids = list(merge_ids)
    query = sa.select(removal_items.c.merge_id, removal_items.c.snapshot_id).where(removal_items.c.merge_id.in_(ids))
    found: dict[str, list[str]] = {merge_id: [] for merge_id in ids}
    for merge_id, snapshot_id in session.execute(query.order_by(removal_items.c.place)):
        found[merge_id].append(snapshot_id)
    return found


def open_merges_of(session: Session, removal_id: str, snapshot_id: str) -> int:
    """How many merges of a removal that touch this snapshot have not ended."""
    joined = removal_items.join(jobs, jobs.c.id == removal_items.c.merge_id)
    where = (removal_items.c.removal_id == removal_id, removal_items.c.snapshot_id == snapshot_id)
    query = sa.select(sa.func.count()).select_from(joined).where(*where, jobs.c.state.in_(OPEN))
    return int(session.execute(query).scalar_one())


def restorable_of(session: Session, merge_id: str) -> list[str]:
    """Those of the snapshots that a merge removes which can still be restored."""
    joined = removal_items.join(snapshots, snapshots.c.id == removal_items.c.snapshot_id)
    query = sa.select(snapshots.c.id).select_from(joined)
    return list(session.scalars(query.where(removal_items.c.merge_id == merge_id, snapshots.c.restorable)))


def kept(session: Session, removal_id: str, snapshot_id: str) -> list[dict[str, Any]]:
    """What the flows of a removal's merges of this snapshot wrote down, of those that were planned."""
    joined = removal_items.join(merges, merges.c.id == removal_items.c.merge_id).join(flows, flows.c.id == merges.c.id)
    where = (removal_items.c.removal_id == removal_id, removal_items.c.snapshot_id == snapshot_id, merges.c.planned)
    return list(session.scalars(sa.select(flows.c.data).select_from(joined).where(*where)))


def any_done(session: Session, removal_id: str, snapshot_id: str) -> bool:
    """Whether a merge of this removal took something of this snapshot."""
    joined = removal_items.join(jobs, jobs.c.id == removal_items.c.merge_id)
    where = (removal_items.c.removal_id == removal_id, removal_items.c.snapshot_id == snapshot_id)
    query = sa.select(jobs.c.id).select_from(joined).where(*where, jobs.c.state == "done")
    return session.execute(query).first() is not None
