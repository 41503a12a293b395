"""SQL of what only the storage knows of volumes, and of whose turn it is to be scanned."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import clock
from services.snapshots import store_overview
from services.snapshots.facts import Volume
from services.snapshots.tables import disk_locks, disks, rescans, volumes


@dataclass(frozen=True)
class Seen:
    """A volume as it was last seen. `size` in bytes; `created_at` None where its metadata do not say."""

    size: int
    created_at: datetime.datetime | None = None


def of_look(found: Mapping[str, Volume]) -> dict[str, Seen]:
    """By volume id."""
    return {id_: Seen(one.actual_size, _time(one.created_at)) for id_, one in found.items()}


def of_scan(row: Mapping[str, Any]) -> Seen:
    """Of a row of contracts.hostagent.DomainScan."""
    return Seen(row["actual_size"], _time(row["created_at"]))


def _time(text: str | None) -> datetime.datetime | None:
    return None if text is None else clock.parse(text)


def keep(session: Session, seen: Mapping[str, Seen]) -> None:
    """Remember it, of volumes that are in the books."""
    for volume_id, one in seen.items():
        values: dict[str, Any] = {"actual_size": one.size}
        if one.created_at is not None:
            values["created_at"] = one.created_at
        session.execute(sa.update(volumes).where(volumes.c.id == volume_id).values(values))
    store_overview.refresh(session, store_overview.of_volumes(session, seen))


def on_domain(session: Session, domain_id: str) -> dict[str, Seen | None]:
    """What is kept of every volume in the books of the disks there, None: nothing yet."""
    columns = (volumes.c.id, volumes.c.actual_size, volumes.c.created_at)
    joined = volumes.join(disks, disks.c.id == volumes.c.disk_id)
    rows = session.execute(sa.select(*columns).select_from(joined).where(disks.c.domain_id == domain_id))
    return {row.id: None if row.actual_size is None else Seen(row.actual_size, row.created_at) for row in rows}


def busy_on(session: Session) -> set[str]:
    """The disks on which jobs of ours work."""
    return set(session.scalars(sa.select(disk_locks.c.disk_id)))


# -- scans that come by themselves ------------------------------------------------------------------------


def begin_scan(session: Session, domain_id: str, now: datetime.datetime, before: datetime.datetime) -> bool:
    """Whether it is the caller who scans this domain now: nobody has begun since `before`. With several instances one
    is answered yes."""
    here = rescans.c.domain_id == domain_id
    ours: Any = session.execute(sa.update(rescans).where(here, rescans.c.begun_at < before).values(begun_at=now))
    if ours.rowcount:
        return True
    if session.execute(sa.select(rescans.c.domain_id).where(here)).first() is not None:
        return False
    session.execute(rescans.insert().values(domain_id=domain_id, begun_at=now))
    return True
