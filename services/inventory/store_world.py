"""SQL over many rows: places for work, what heartbeats touch, what is overdue."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from services.inventory import places, powers, tables

# -- places -----------------------------------------------------------------------------------------------


def places_of(
    session: Session, *, cluster_id: str | None = None, data_center_id: str | None = None
) -> list[places.Place]:
    """The hosts of a cluster or of a data center, with the memory that VMs hold there."""
    used = (
        sa.select(tables.Vm.host_id, sa.func.sum(tables.Vm.memory).label("used"))
        .where(tables.Vm.host_id.is_not(None))
        .group_by(tables.Vm.host_id)
        .subquery()
    )
    query = sa.select(tables.Host, used.c.used).outerjoin(used, used.c.host_id == tables.Host.id)
    if cluster_id is not None:
        query = query.where(tables.Host.cluster_id == cluster_id)
    if data_center_id is not None:
        query = query.join(tables.Cluster).where(tables.Cluster.data_center_id == data_center_id)
    return [place_of(host, int(held or 0)) for host, held in session.execute(query.order_by(tables.Host.id))]


def place_of(host: tables.Host, used: int = 0) -> places.Place:
    facts = host.facts or {}
    return places.Place(
        host.id,
        host.cluster_id,
        host.state,
        host.clock_offset or 0.0,
        int(facts.get("memory", 0)),
        used,
        host.problem or "",
        facts.get("leases_fault") or "",
    )


# -- MAC addresses ----------------------------------------------------------------------------------------


def macs_between(session: Session, first: str, last: str) -> set[str]:
    """The addresses of a pool that NICs of any data center use."""
    query = sa.select(tables.Nic.mac).where(tables.Nic.mac.between(first, last))
    return set(session.execute(query).scalars())


def nics_with(session: Session, column: Any, values: Collection[str], but_vm: str) -> list[tables.Nic]:
    """Other VMs' NICs that have one of these ids or addresses."""
    query = sa.select(tables.Nic).where(column.in_(values), tables.Nic.vm_id != but_vm)
    return list(session.execute(query).scalars())


# -- what heartbeats touch --------------------------------------------------------------------------------


def vms_touched(session: Session, host_id: str, listed: Collection[str]) -> list[tables.Vm]:
    """The VMs that a host's list says something about: on it, or named by it. Read, not held."""
    mine = sa.or_(tables.Vm.host_id == host_id, tables.Vm.also_on == host_id, tables.Vm.id.in_(listed))
    return list(session.execute(sa.select(tables.Vm).where(mine).order_by(tables.Vm.id)).scalars())


def vms_on(session: Session, host_id: str) -> list[tables.Vm]:
    """The VMs that run or may run on a host, held."""
    mine = sa.or_(tables.Vm.host_id == host_id, tables.Vm.also_on == host_id)
    query = sa.select(tables.Vm).where(mine).order_by(tables.Vm.id).with_for_update()
    return list(session.execute(query.execution_options(populate_existing=True)).scalars())


def silent_hosts(session: Session, before: dt.datetime) -> list[tables.Host]:
    """Hosts whose last heartbeat came before this, held."""
    late = sa.and_(tables.Host.state.in_(("up", "problem")), tables.Host.last_seen < before)
    query = sa.select(tables.Host).where(late).order_by(tables.Host.id).with_for_update()
    return list(session.execute(query).scalars())


def power_of(vm: tables.Vm) -> powers.Power:
    return powers.Power(vm.state, vm.since, vm.trust_after, vm.host_id, vm.also_on, vm.reason, vm.heard)


# -- what is overdue --------------------------------------------------------------------------------------


def overdue(session: Session, now: dt.datetime) -> list[tuple[type[tables.Row], str, str]]:
    """(sort, id, state) of everything that waits for the end of an ask and that no request works on."""
    found: list[tuple[type[tables.Row], str, str]] = []
    waiting: Sequence[tuple[type[Any], tuple[str, ...]]] = (
        (tables.StorageDomain, ("creating", "deleting")),
        (tables.Disk, ("creating", "deleting")),
        (tables.Vm, ("starting", "deleting")),
        (tables.Template, ("deleting",)),
    )
    for sort, states in waiting:
        query = sa.select(sort.id, sort.state).where(sort.state.in_(states), sort.asked_until < now)
        found += [(sort, id_, state) for id_, state in session.execute(query.order_by(sort.id).limit(100))]
    return found


def copies(session: Session, now: dt.datetime) -> list[str]:
    """The disks that are being copied and that nobody asks about now."""
    here = sa.and_(tables.Disk.state == "creating", tables.Disk.copied.is_not(None), tables.Disk.asked_until <= now)
    return list(session.execute(sa.select(tables.Disk.id).where(here).order_by(tables.Disk.id).limit(100)).scalars())


def domains_to_look_at(session: Session, before: dt.datetime, now: dt.datetime) -> list[tables.StorageDomain]:
    """Active domains whose sizes are older than this; they are marked as looked at now, so that of several
    instances one looks."""
    stale = sa.or_(tables.StorageDomain.looked_at.is_(None), tables.StorageDomain.looked_at < before)
    query = sa.select(tables.StorageDomain).where(tables.StorageDomain.state == "active", stale)
    rows = list(session.execute(query.order_by(tables.StorageDomain.id).with_for_update()).scalars())
    for row in rows:
        row.looked_at = now
    return rows
