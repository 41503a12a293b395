"""Sizes and leftovers come by themselves: with each snapshot and merge, and with scans from time to time."""

from __future__ import annotations

import datetime as dt
import pathlib
import threading
import time
from typing import Any

from chassis import migrate
from chassis.database import Database
from contracts import snapshots
from services.snapshots import store_seen
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.process import Process
from tests.fakes.site import Site, new


def listed(site: Site, **request: Any) -> dict[str, Any]:
    return site.call(snapshots.list_disk_snapshots, id=site.domain["id"], **request)


def leftovers(site: Site) -> list[dict[str, Any]]:
    return list(site.call(snapshots.list_leftovers, id=site.domain["id"])["items"])


def stray(site: Site, host: FakeAgent, vm: str) -> str:
    """A volume in the folder of the VM's disk that nothing knows."""
    disk_id, made = site.disk_ids(vm)[0], new()
    ask = {"disk": {"disk_id": disk_id, "domain": site.ref()}, "volume_id": made}
    with host.world.storage.lock:
        leaf = host.world.storage.leaf(disk_id)
        host.world.create_volume({**ask, "parent_id": leaf, "capacity": 1024 * MIB, "format": "cow"})
    return made


def test_a_new_snapshot_has_its_sizes_and_a_merge_keeps_them(
    site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path)
    vm = site.vm(host, disks=2)
    first = site.taken(vm)
    for row in listed(site)["items"]:
        assert (row["size"], row["made_at"] is not None) == (100 * MIB, True)
        assert row["returns"] == site.volumes(row["disk_id"])[site.chain(row["disk_id"])[-1]].actual_size
    assert listed(site)["size"] == 200 * MIB
    for disk_id in site.disk_ids(vm):
        site.volumes(disk_id)[site.chain(disk_id)[-1]].actual_size = 7 * MIB
    second = site.taken(vm)
    assert [row["size"] for row in listed(site)["items"]] == [100 * MIB] * 2 + [7 * MIB] * 2
    assert site.end_of(site.remove(first))["state"] == "done"
    rows = listed(site)["items"]
    assert [row["snapshot_id"] for row in rows] == [second] * 2
    assert [row["size"] for row in rows] == [site.volumes(row["disk_id"])[row["volume_id"]].actual_size for row in rows]


def test_what_a_guest_writes_and_what_belongs_to_nothing_comes_by_itself(
    site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path
) -> None:
    process = site.service(url, tmp_path, rescan_every=0.5)
    vm = site.vm(host)
    site.taken(vm)
    disk_id = site.disk_ids(vm)[0]
    site.volumes(disk_id)[site.chain(disk_id)[-1]].actual_size = 31 * MIB
    site.until(lambda: listed(site)["returns"] == 31 * MIB, "the size of the leaf")
    made = stray(site, host, vm)
    site.until(lambda: [one["volume_id"] for one in leftovers(site)] == [made], "the leftover")
    with host.world.storage.lock:
        del site.volumes(disk_id)[made]
    site.until(lambda: leftovers(site) == [], "its end")
    scans = len(host.asked("scan_domain"))
    # each is followed by a rest of twenty times as long as it took, which on a busy machine is long
    site.until(lambda: len(host.asked("scan_domain")) >= scans + 2, "more scans", 200)
    assert process.log.count(" new, ") == 2  # where something changed, and nowhere else


def test_a_domain_that_nobody_can_scan_is_told_once(site: Site, host: FakeAgent, start: Any) -> None:
    site.hosts[host.host_id]["state"] = "non_responsive"
    process = start(rescan_every=0.4)
    site.until(lambda: "cannot be scanned" in process.log, "the reason")
    time.sleep(1.5)  # three more rounds
    assert host.asked("scan_domain") == []
    site.hosts[host.host_id]["state"] = "up"
    site.until(lambda: "scanned, 0 leftovers" in process.log, "a scan")
    assert process.log.count("cannot be scanned") == 1


def test_a_domain_that_is_not_active_is_left_alone(site: Site, host: FakeAgent, start: Any) -> None:
    site.domain["state"] = "maintenance"
    start(rescan_every=0.4)
    time.sleep(1.5)
    assert host.asked("look_domain") == host.asked("scan_domain") == []
    site.domain["state"] = "active"
    site.until(lambda: host.asked("scan_domain"), "a scan")


def test_a_domain_on_which_merges_are_at_work_waits(site: Site, host: FakeAgent, start: Any) -> None:
    start(rescan_every=4)
    vm = site.vm(host)
    snapshot = site.taken(vm)
    host.world.job_rate = 0
    before = len(host.asked("scan_domain"))
    site.until(lambda: len(host.asked("scan_domain")) > before, "a scan")
    seen = time.monotonic()
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("start_commit"), "the copy")
    time.sleep(max(0.0, seen + 13 - time.monotonic()))  # more than two periods, and the rest after a scan
    assert len(host.asked("scan_domain")) == before + 1
    site.until(lambda: len(host.asked("scan_domain")) > before + 1, "a scan for all that", 30)
    host.world.job_rate = 64 * MIB
    assert site.end_of(removal)["state"] == "done"


def test_nothing_is_said_of_what_is_worked_on_while_the_scan_goes_on(
    site: Site, host: FakeAgent, running: Process
) -> None:
    vm, other = site.vm(host), site.vm(host)
    kept = stray(site, host, vm)
    site.call(snapshots.rebuild_overview, id=site.domain["id"])
    snapshot = site.taken(other)
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    site.until(lambda: host.asked("start_commit"), "the copy")
    stray(site, host, other)  # as a new volume of a job that has not recorded it yet
    gone = site.disk(host, None)
    del site.disks[gone["id"]]
    told = site.call(snapshots.rebuild_overview, id=site.domain["id"])
    assert told["leftovers"] == 2
    assert [one["code"] for one in leftovers(site)] == ["folder_without_disk", "volume_without_disk"]
    assert leftovers(site)[1]["volume_id"] == kept
    site.call(snapshots.cancel_job, id=removal["id"])
    site.end_of(removal)


def test_of_two_instances_one_scans(database: Database) -> None:
    migrate.upgrade(database, "services.snapshots")
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    answers: list[bool] = []

    def ask(moment: dt.datetime) -> None:
        with database.write() as session:
            answers.append(store_seen.begin_scan(session, new_id, moment, moment - dt.timedelta(seconds=9)))

    new_id = new()
    ask(now)
    askers = [threading.Thread(target=ask, args=(now + dt.timedelta(seconds=10),)) for _ in range(4)]
    [one.start() for one in askers], [one.join() for one in askers]
    ask(now + dt.timedelta(seconds=11))
    assert sorted(answers) == [False] * 4 + [True] * 2
