"""The main road: snapshots are taken and removed, on both databases."""

from __future__ import annotations

import pathlib

from chassis.database import Database
from services.snapshots import tables
from tests.fakes.agent import FakeAgent
from tests.fakes.schema import assert_migrated
from tests.fakes.site import Site


def test_migrations_make_the_tables(database: Database) -> None:
    assert_migrated(database, "services.snapshots", tables.metadata)


def test_snapshots_are_taken_and_removed_again(site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path) -> None:
    site.service(url, tmp_path)
    vm = site.vm(host, disks=2)
    first, middle, last = (site.taken(vm, description=word) for word in ("first", "middle", "last"))
    assert site.agrees(host, vm)
    for snapshot in (middle, last, first):
        job = site.end_of(site.remove(snapshot))
        assert job["state"] == "done", job
        assert site.agrees(host, vm)
    assert [len(site.chain(disk)) for disk in site.disk_ids(vm)] == [1, 1]
