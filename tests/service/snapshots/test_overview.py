"""The disk snapshots of a domain in one list: it follows every change, is made anew, and is cut into pages."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from chassis.database import Database
from contracts import errors, inventory, snapshots
from contracts.overview import SORTS
from services.snapshots import tables
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.process import Process
from tests.fakes.site import Site, new


def listed(site: Site, **request: Any) -> dict[str, Any]:
    return site.call(snapshots.list_disk_snapshots, id=site.domain["id"], **request)


def rebuilt(site: Site) -> dict[str, Any]:
    return site.call(snapshots.rebuild_overview, id=site.domain["id"])


def test_the_list_follows_snapshots_and_merges_and_can_be_made_anew(
    site: Site, host: FakeAgent, url: str, database: Database, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path)
    vm = site.vm(host, disks=2)
    first, second = site.taken(vm, description="first"), site.taken(vm, description="second")
    rebuilt(site)
    rows = listed(site, sort="depth")["items"]
    assert [(r["description"], r["depth"], r["layers"], r["state"]) for r in rows] == [
        *[("first", 0, 3, "ok")] * 2,
        *[("second", 1, 3, "ok")] * 2,
    ]
    assert all(r["removable"] and r["vm_name"] == "vm" for r in rows)
    assert site.end_of(site.remove(first))["state"] == "done"
    kept = listed(site)
    assert [r["snapshot_id"] for r in kept["items"]] == [second, second]
    with database.write() as session:  # whatever was lost
        session.execute(tables.overview.delete())
        session.execute(tables.vm_names.delete())
    assert listed(site)["total"] == 0
    assert rebuilt(site)["disk_snapshots"] == 2
    again = listed(site)
    assert again["items"] == sorted(kept["items"], key=lambda r: (r["size"], r["volume_id"]), reverse=True)


def test_the_list_of_before_is_there_after_an_upgrade(
    site: Site, host: FakeAgent, url: str, database: Database, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path)
    site.taken(site.vm(host))
    with database.write() as session:
        session.execute(tables.overview.delete())
    site.restart()
    assert listed(site)["total"] == 1


def test_pages_are_sorted_filtered_and_summed(site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path) -> None:
    site.service(url, tmp_path)
    vm, other = site.vm(host), site.vm(host)
    for number in range(3):
        site.taken(vm, description=f"Night {number}")
    site.taken(other, description="day_0%")
    for disk_id, size in ((site.disk_ids(vm)[0], 10), (site.disk_ids(other)[0], 7)):
        for volume in site.volumes(disk_id).values():
            volume.actual_size = size * MIB
    rebuilt(site)
    for sort in (order for name in SORTS if name[0] != "-" for order in (name, f"-{name}")):
        one_by_one, after = [], None
        for _ in range(4):
            page = listed(site, sort=sort, limit=1, after=after)
            one_by_one += page["items"]
            after = page["next"]
        assert after is None
        assert one_by_one == listed(site, sort=sort)["items"]
    assert (page["total"], page["size"], page["returns"]) == (4, 37 * MIB, 37 * MIB)
    assert listed(site, text="NIGHT")["total"] == 3
    assert listed(site, text="_0%")["total"] == 1
    assert listed(site, vm_id=other, min_size=7 * MIB)["total"] == 1
    assert listed(site, min_size=8 * MIB, removable=True)["total"] == 3
    assert listed(site, min_depth=2, state="ok")["total"] == 1
    assert listed(site, taken_before="2020-01-01T00:00:00Z")["total"] == 0


def test_what_cannot_be_removed_says_why(site: Site, host: FakeAgent, running: Process) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.world.job_rate = 0
    job = site.remove(snapshot)
    (row,) = listed(site)["items"]
    assert (row["state"], row["removable"], row["reason"]) == ("removing", False, f"Job {job['id']} works on the disk.")
    site.call(snapshots.cancel_job, id=job["id"])
    site.end_of(job)
    (row,) = listed(site)["items"]
    assert (row["state"], row["removable"]) == ("ok", True)


def test_names_follow_inventory(site: Site, host: FakeAgent, running: Process) -> None:
    vm = site.vm(host)
    site.taken(vm)
    site.vms[vm]["name"] = "db1"
    site.bus.tell(inventory.vm_changed, site.vms[vm])
    site.until(lambda: listed(site, text="db1")["total"] == 1, "the new name")
    site.bus.tell(inventory.vm_deleted, {"id": vm})
    site.until(lambda: listed(site)["total"] == 0, "the end of its snapshots")


def test_leftovers_and_deep_chains_are_told_with_what_helps(site: Site, host: FakeAgent, start: Any) -> None:
    start(deep_chain=2)
    vm = site.vm(host)
    site.taken(vm), site.taken(vm)
    disk_id = site.disk_ids(vm)[0]
    stray = new()
    leaf = host.world.storage.leaf(disk_id)
    ask = {"disk": {"disk_id": disk_id, "domain": site.ref()}, "volume_id": stray, "parent_id": leaf}
    with host.world.storage.lock:
        host.world.create_volume({**ask, "capacity": 1024 * MIB, "format": "cow"})
    lost = site.disk(host, None)
    del site.disks[lost["id"]]
    assert rebuilt(site)["leftovers"] == 2
    told = site.call(snapshots.list_leftovers, id=site.domain["id"])
    assert [one["code"] for one in told["items"]] == ["deep_chain", "folder_without_disk", "volume_without_disk"]
    assert "has 3 volumes, more than 2" in told["items"][0]["message"]
    assert told["items"][2]["action"].endswith(f"drystone doctor disk {disk_id}")
    pages = [site.call(snapshots.list_leftovers, id=site.domain["id"], limit=1, after=a) for a in (None, "1", "2")]
    assert [page["items"][0] for page in pages] == told["items"]
    assert [page["next"] for page in pages] == ["1", "2", None]


@pytest.mark.parametrize(
    "after",
    ["x", "[1]", '[1, "a", 2]', '["a", "b"]', '[1e400, "a"]', '[true, "a"]', f'[{10**30}, "a"]', '[1, "\\u0000"]'],
)
def test_a_cursor_that_is_none_is_refused(site: Site, host: FakeAgent, running: Process, after: str) -> None:
    with pytest.raises(errors.BadRequest):
        listed(site, sort="size", after=after)
    with pytest.raises(errors.BadRequest):
        site.call(snapshots.list_leftovers, id=site.domain["id"], after=after)


def test_an_unknown_domain_is_named(site: Site, host: FakeAgent, running: Process) -> None:
    for promise in (snapshots.list_disk_snapshots, snapshots.list_leftovers, snapshots.rebuild_overview):
        with pytest.raises(errors.NotFound):
            site.call(promise, id=new())


def test_the_books_are_shown_even_where_no_host_can_scan(
    site: Site, host: FakeAgent, url: str, database: Database, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path)
    site.taken(site.vm(host))
    with database.write() as session:
        session.execute(tables.overview.delete())
    site.hosts[host.host_id]["state"] = "problem"
    with pytest.raises(errors.NoHost):
        rebuilt(site)
    assert listed(site)["total"] == 1
