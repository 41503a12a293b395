"""How much the merges at work on a domain may still need."""

from __future__ import annotations

import datetime as dt

import pytest

from chassis import migrate
from chassis.database import Database
from services.snapshots import store_jobs
from tests.fakes.site import new

GIB = 2**30
DOMAIN = new()


@pytest.mark.parametrize(
    ("cur", "promised"),
    [(0, 3 * GIB), (90 * GIB, 3 * GIB), (98 * GIB, 2 * GIB), (100 * GIB, 0)],
    ids=["at its begin", "over holes", "near its end", "all copied"],
)
def test_what_a_job_went_over_was_not_all_written(database: Database, cur: int, promised: int) -> None:
    """A job over a disk of 100 GiB, of which 3 GiB are there to be copied, perhaps all at the end of the disk."""
    migrate.upgrade(database, "services.snapshots")
    job, ids = new(), {name: new() for name in ("removal_id", "vm_id", "disk_id", "base_id", "top_id", "host_id")}
    line = {"kind": "merge", "step": "commit", "user": "u", "description": "", "body_hash": ""}
    sizes = {"reserve": 0, "bandwidth": 0, "copy_bytes": 3 * GIB, "needs": 3 * GIB, "returns": 0}
    with database.write() as session:
        store_jobs.add(session, id=job, **line, created_at=dt.datetime.now(dt.UTC))
        where = {"domain_id": DOMAIN, "domain_path": "/mnt", "position": 1, "between": []}
        store_jobs.add_merge(session, id=job, **ids, **where, **sizes)
        store_jobs.change_merge(session, job, let_in=True, planned=True)
        store_jobs.change(session, job, cur=cur, end=100 * GIB)
        assert store_jobs.promised(session, DOMAIN, new()) == promised
        assert store_jobs.promised(session, DOMAIN, job) == 0
