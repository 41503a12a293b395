"""The one transaction of a repair, on both databases."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from chassis import migrate
from chassis.database import Database
from contracts import errors
from services.snapshots import store, store_doctor, tables
from services.snapshots.books import Books
from services.snapshots.repair import Plan

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
V1, V2, V3, V4, DISK, OTHER, VM, S1, S2 = (str(uuid.UUID(int=n)) for n in range(1, 10))
TOLD = {"id": DISK, "vm_id": VM, "alias": "root", "domain_id": V4, "first_volume_id": V1}
BOTH = {**TOLD, "id": OTHER, "alias": "data", "first_volume_id": V4}


@pytest.fixture
def db(database: Database) -> Database:
    """v1 <- v2 <- v3; s1 holds v1, s2 holds v2 and another disk."""
    migrate.upgrade(database, "services.snapshots")
    with database.write() as session:
        store.know(session, TOLD)
        store.know(session, BOTH)
        for parent, child in ((V1, V2), (V2, V3)):
            store.add_volume(session, DISK, child, parent)
        session.execute(sa.update(tables.disks).where(tables.disks.c.id == DISK).values(active_id=V3))
        for id_, held in ((S1, {DISK: V1}), (S2, {DISK: V2, OTHER: V4})):
            row = {"id": id_, "vm_id": VM, "description": id_[-1], "job_id": None, "created_at": NOW}
            store.add_snapshot(session, row, held)
            store.change_snapshot(session, id_, state="ok")
        session.execute(sa.delete(outbox_table()))
    return database


def outbox_table() -> sa.Table:
    return tables.metadata.tables["outbox"]


def seen(db: Database) -> Books:
    with db.read() as session:
        return store_doctor.books(session, TOLD)


def apply(db: Database, plan: Plan, books: Books | None = None) -> None:
    known = books or seen(db)
    with db.write() as session:
        store_doctor.apply(session, TOLD, known, plan, NOW, "anna")


def snapshot(db: Database, id_: str) -> dict[str, Any]:
    with db.read() as session:
        return store.snapshot(session, id_)


MERGED = Plan(truth=(V1, V3), rows=True, drop=(V2,), lost=(V2,), mixed=(V1,), changes=("a change.",))


def test_rows_snapshots_and_news_change_together(db: Database) -> None:
    apply(db, MERGED)
    now = seen(db)
    assert (now.chain(), now.volumes[V2].dropped, now.busy) == ((V1, V3), True, None)
    assert snapshot(db, S1)["restorable"] is False
    left = snapshot(db, S2)
    assert ([one["disk_id"] for one in left["disks"]], left["partly_removed"]) == ([OTHER], True)
    with db.read() as session:
        assert session.execute(sa.select(sa.func.count()).select_from(outbox_table())).scalar_one() == 3


def test_a_volume_that_came_to_be_inner_gets_a_snapshot(db: Database) -> None:
    new = str(uuid.UUID(int=99))
    apply(db, Plan(truth=(V1, V2, V3, new), rows=True, found=(V3,), adopt=(new,)))
    assert seen(db).chain() == (V1, V2, V3, new)
    holder = seen(db).holders[V3]
    assert (holder.description, holder.restorable) == (store_doctor.FOUND, False)
    assert snapshot(db, holder.snapshot_id)["state"] == "ok"


def test_a_snapshot_that_loses_its_last_disk_goes(db: Database) -> None:
    apply(db, Plan(truth=(V2, V3), rows=True, forget=(V1,), lost=(V1,)))
    with pytest.raises(errors.NotFound):
        snapshot(db, S1)
    assert V1 not in seen(db).volumes


def test_rows_that_form_no_chain_are_set_right(db: Database) -> None:
    with db.write() as session:
        session.execute(sa.update(tables.volumes).where(tables.volumes.c.id == V2).values(parent_id=V3))
    assert seen(db).chain() == ()
    with db.read() as session, pytest.raises(errors.ChainDiffers, match="missing or twice"):
        store.chain_of(session, DISK)
    apply(db, Plan(truth=(V1, V2, V3), rows=True))
    assert seen(db).chain() == (V1, V2, V3)


def test_nothing_changes_when_the_rows_are_not_those_that_were_seen(db: Database) -> None:
    other = replace(seen(db), active_id=V2)
    with pytest.raises(errors.DiagnosisChanged):
        apply(db, MERGED, other)
    assert seen(db).chain() == (V1, V2, V3)


def test_nothing_changes_when_a_job_took_the_disk_meanwhile(db: Database) -> None:
    before = seen(db)
    with db.write() as session:
        store.lock(session, [DISK], "job-1", VM)
    with pytest.raises(errors.DiskBusy, match="job-1"):
        apply(db, MERGED, before)
    assert (seen(db).chain(), seen(db).busy) == ((V1, V2, V3), "job-1")
