"""SQL of the lists of a domain: pages of the overview, what a filter matches, and what is odd there."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import clock
from chassis.tables import UtcTime
from contracts import errors
from services.snapshots.store_overview import LEFTOVER, UNSEEN, UNSEEN_TIME
from services.snapshots.tables import LONG, WORDS, leftovers, overview, scans

# -- pages ------------------------------------------------------------------------------------------------


def page(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    """contracts.overview.DiskSnapshotRows. Raises BadRequest for a cursor that is none of this list."""
    where = _where(request["id"], request)
    name, down = request["sort"].removeprefix("-"), request["sort"].startswith("-")
    column, key = overview.c[LONG.get(name, name)], overview.c.volume_id
    query = sa.select(*_SHOWN).where(*where)
    if request["after"] is not None:
        here = sa.tuple_(column, key)
        value, last = _cursor(request["after"], column.type)
        there = sa.tuple_(sa.literal(value, column.type), sa.literal(last, key.type))
        query = query.where(here < there if down else here > there)
    ordered = query.order_by(column.desc(), key.desc()) if down else query.order_by(column, key)
    rows = session.execute(ordered.limit(request["limit"] + 1)).all()
    more = rows[request["limit"] - 1] if len(rows) > request["limit"] else None
    sums = _sums(where).add_columns(_scanned(request["id"]).scalar_subquery())
    total, size, returns, moment = session.execute(sums).one()
    return {
        "items": [_told(row) for row in rows[: request["limit"]]],
        "next": None if more is None else json.dumps([_plain(more, name), more.volume_id], ensure_ascii=False),
        "total": total,
        "size": int(size or 0),
        "returns": int(returns or 0),
        "scanned_at": clock.iso(moment) if moment is not None else None,
    }


def count(session: Session, domain_id: str, condition: Mapping[str, Any]) -> int:
    """How many rows all pages have."""
    query = sa.select(sa.func.count()).select_from(overview).where(*_where(domain_id, condition))
    return int(session.execute(query).scalar_one())


def pairs(session: Session, domain_id: str, condition: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Snapshot and disk of the rows of all pages, the oldest first."""
    query = sa.select(overview.c.snapshot_id, overview.c.disk_id).where(*_where(domain_id, condition))
    ordered = query.order_by(overview.c.taken_at, overview.c.volume_id)
    return [(snapshot_id, disk_id) for snapshot_id, disk_id in session.execute(ordered)]


def _where(domain_id: str, request: Mapping[str, Any]) -> list[Any]:
    """`request`: contracts.overview.DiskSnapshotFilter."""
    c = overview.c
    where: list[Any] = [c.domain_id == domain_id]
    if request["vm_id"] is not None:
        where.append(c.vm_id == request["vm_id"])
    if request["text"]:
        found = (sa.func.lower(column).contains(request["text"].lower(), autoescape=True) for column in _WORDS)
        where.append(sa.or_(*found))
    if request["taken_before"] is not None:
        where.append(c.taken_at < clock.parse(request["taken_before"]))
    if request["min_size"] is not None:
        where.append(c.size >= request["min_size"])
    if request["min_depth"] is not None:
        where.append(c.depth >= request["min_depth"])
    if request["state"] is not None:
        where.append(c.state == request["state"])
    if request["removable"] is not None:
        where.append(c.reason.is_(None) if request["removable"] else c.reason.is_not(None))
    return where


_SHOWN = [column for column in overview.c if column.name not in LONG.values()]
_NAMES = [column.name for column in _SHOWN]
_WORDS = (overview.c.description, overview.c.alias, overview.c.vm_name)


def _sums(where: Sequence[Any]) -> sa.Select[Any]:
    """How many, and the bytes of those whose size was seen."""
    sizes = (
        sa.func.sum(sa.case((column == UNSEEN, 0), else_=column)) for column in (overview.c.size, overview.c.returns)
    )
    return sa.select(sa.func.count(), *sizes).select_from(overview).where(*where)


def _scanned(domain_id: str) -> sa.Select[Any]:
    """When the storage was last looked at, if it was."""
    return sa.select(scans.c.scanned_at).where(scans.c.domain_id == domain_id)


def _cursor(text: str, kind: sa.types.TypeEngine[Any]) -> tuple[Any, str]:
    """`kind` of the values of the column."""
    is_time = isinstance(kind, UtcTime)
    try:
        value: Any
        value, last = json.loads(text)
        if type(value) is not (str if is_time else kind.python_type) or type(last) is not str:
            raise ValueError
        if "\0" in f"{value}{last}" or _is_huge(value):
            raise ValueError
        return clock.parse(value) if is_time else value, last
    except (ValueError, TypeError, RecursionError):
        raise errors.BadRequest(errors={"after": ["Not a cursor of this list."]}) from None


def _is_huge(value: Any) -> bool:
    """No database has such a number."""
    return isinstance(value, int) and not -(2**31) <= value < 2**63


def _plain(row: Any, name: str) -> Any:
    """What a row is sorted by, for a cursor."""
    value = getattr(row, name)
    if name in LONG:
        return (value or "")[:WORDS]
    return clock.iso(value) if isinstance(value, datetime.datetime) else value


def _told(row: Any) -> dict[str, Any]:
    told = dict(zip(_NAMES, row, strict=True))
    for name in ("size", "returns"):
        told[name] = None if told[name] == UNSEEN else told[name]
    told["made_at"] = None if told["made_at"] == UNSEEN_TIME else clock.iso(told["made_at"])
    told["taken_at"] = clock.iso(told["taken_at"])
    told["removable"] = told["reason"] is None
    return told


# -- what is odd on a domain ------------------------------------------------------------------------------


def scanned_at(session: Session, domain_id: str) -> str | None:
    moment = session.execute(_scanned(domain_id)).scalar()
    return clock.iso(moment) if moment is not None else None


def odd(session: Session, request: Mapping[str, Any], deep: int) -> dict[str, Any]:
    """contracts.overview.Leftovers: chains of more than `deep` volumes, the deepest first, then what the scan found."""
    chains = session.execute(_deep(request["id"], deep)).all()
    start = _number(request["after"])
    first = [_told_deep(row, deep) for row in chains[start : start + request["limit"]]]
    here = leftovers.c.domain_id == request["id"]
    number = leftovers.c.number
    total = session.execute(sa.select(sa.func.count()).select_from(leftovers).where(here)).scalar_one()
    query = sa.select(leftovers).where(here, number > max(0, start - len(chains))).order_by(number)
    rest = session.execute(query.limit(request["limit"] - len(first))).all()
    items = first + [{name: getattr(row, name) for name in LEFTOVER} for row in rest]
    end = start + len(items)
    everything = len(chains) + total
    following = str(end) if end < everything else None
    return {"items": items, "next": following, "total": everything, "scanned_at": scanned_at(session, request["id"])}


def _deep(domain_id: str, deep: int) -> sa.Select[Any]:
    c = overview.c
    shown = (c.disk_id, sa.func.max(c.alias).label("alias"), sa.func.max(c.vm_name).label("vm_name"), c.layers)
    query = sa.select(*shown).where(c.domain_id == domain_id, c.layers > deep)
    return query.group_by(c.disk_id, c.layers).order_by(c.layers.desc(), c.disk_id)


def _told_deep(row: Any, deep: int) -> dict[str, Any]:
    whose = f" of VM {row.vm_name}" if row.vm_name else ""
    return {
        "code": "deep_chain",
        "message": f"The chain of disk {row.alias}{whose} has {row.layers} volumes, more than {deep}.",
        "action": f"Remove snapshots that nobody needs: drystone snapshot list --vm {row.vm_name or 'NAME'}",
        "disk_id": row.disk_id,
        "volume_id": None,
        "path": None,
        "size": None,
    }


def _number(after: str | None) -> int:
    if after is None:
        return 0
    if not after.isascii() or not after.isdigit() or len(after) > 9:
        raise errors.BadRequest(errors={"after": ["Not a cursor of this list."]})
    return int(after)
