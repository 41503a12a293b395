"""What a database of before has is still there, in its new shape."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

from chassis import migrate
from chassis.database import Database
from contracts import snapshots
from services.snapshots import store_jobs, store_lists, store_removals

NOW = dt.datetime(2026, 11, 28, tzinfo=dt.UTC)
REMOVAL, MERGE = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"
SNAPSHOT, VM, DISK = (f"22222222-0000-4000-8000-00000000000{number}" for number in (1, 2, 3))


def _up_to(database: Database, revision: str) -> None:
    config, script = migrate._open("services.snapshots")
    with database.write() as session:
        migrate._run(config, script, session.connection(), lambda have, _: script._upgrade_revs(revision, have))


def _put(database: Database, name: str, **values: Any) -> None:
    with database.write() as session:
        table = sa.Table(name, sa.MetaData(), autoload_with=session.connection())
        session.execute(table.insert().values(**values))


def test_merges_of_before_keep_their_snapshot_as_an_item_of_their_removal(database: Database) -> None:
    _up_to(database, "0002_behind")
    shared: dict[str, Any] = {
        "vm_id": VM,
        "snapshot_id": SNAPSHOT,
        "user": "admin",
        "description": "",
        "body_hash": "",
        "state": "done",
    }
    shared |= {
        "past": True,
        "cancelling": False,
        "version": 1,
        "created_at": NOW,
        **dict.fromkeys(("cur", "end", "rate"), 0),
    }
    _put(database, "jobs", id=REMOVAL, kind="removal", step="merge", **shared)
    _put(database, "jobs", id=MERGE, kind="merge", parent_id=REMOVAL, disk_id=DISK, step="discard", **shared)
    ids = {"id": MERGE, "removal_id": REMOVAL, "vm_id": VM, "disk_id": DISK, "snapshot_id": SNAPSHOT}
    ends = {"base_id": DISK, "top_id": VM, "child_id": None, "host_id": VM, "domain_id": VM, "domain_path": "/mnt"}
    sizes = ("reserve", "bandwidth", "copy_bytes", "needs", "returns", "before", "bytes_merged", "bytes_returned")
    flags = dict.fromkeys(("let_in", "planned", "recorded", "discarded"), True)
    _put(database, "merges", **ids, **ends, **flags, **dict.fromkeys(sizes, 7))
    migrate.upgrade(database, "services.snapshots")
    with database.read() as session:
        merge = store_jobs.merge(session, MERGE)
        assert (merge.position, merge.between, merge.needs) == (1, [], 7)
        assert store_removals.snapshots_of(session, [MERGE]) == {MERGE: [SNAPSHOT]}
        (item,) = store_removals.items(session, REMOVAL)
        assert (item.disk_id, item.vm_id, item.refusal) == (DISK, VM, None)
        assert [job.id for job in store_jobs.children(session, REMOVAL)] == [MERGE]


def test_rows_of_the_overview_of_before_are_sorted_by_what_is_new(database: Database) -> None:
    _up_to(database, "0005_offline")
    words = {"vm_name": "vm", "alias": "disk", "state": "ok", "reason": None}
    numbers = dict.fromkeys(("size", "returns", "depth"), 7)
    for volume_id, description in ((SNAPSHOT, "b" * 1024), (MERGE, "a")):
        ids = {"volume_id": volume_id, "snapshot_id": SNAPSHOT, "disk_id": DISK, "domain_id": VM, "vm_id": VM}
        row = {**ids, **words, **numbers, "layers": 8, "description": description, "taken_at": NOW}
        _put(database, "overview", **row)
    migrate.upgrade(database, "services.snapshots")
    for sort, first in (("description", MERGE), ("-description", SNAPSHOT), ("reason", MERGE), ("made_at", MERGE)):
        page = _page(database, sort)
        rows = [*page["items"], *_page(database, sort, page["next"])["items"]]
        assert [row["volume_id"] for row in rows] == [first, SNAPSHOT if first == MERGE else MERGE]
        assert rows[0]["made_at"] is None


def _page(database: Database, sort: str, after: str | None = None) -> dict[str, Any]:
    promise, ask = snapshots.list_disk_snapshots, {"id": VM, "sort": sort, "limit": 1, "after": after}
    with database.read() as session:
        return promise.load_reply(store_lists.page(session, promise.load_request(ask)))
