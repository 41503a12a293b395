"""The disk snapshots and leftovers of a storage domain over HTTP and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.gateway.conftest import new
from tests.service.gateway.door import Door
from tests.service.gateway.world import GIB, Row, World


@pytest.fixture
def domain(world: World, vm: Row) -> Iterator[Row]:
    """A domain with three disk snapshots of the VM and one of another one."""
    world.shelf.disk_snapshots = [_disk_snapshot(vm, number) for number in range(3)]
    world.shelf.disk_snapshots.append({**_disk_snapshot(vm, 9), "vm_id": new(), "vm_name": "other"})
    yield world.rows["storage_domain"][vm["disks"][0]["domain_id"]]
    world.shelf.disk_snapshots, world.shelf.leftovers, world.shelf.scanned = [], [], False


def _disk_snapshot(vm: Row, number: int) -> dict[str, Any]:
    disk = vm["disks"][0]
    return {
        "volume_id": new(),
        "snapshot_id": new(),
        "disk_id": disk["id"],
        "domain_id": disk["domain_id"],
        "vm_id": vm["id"],
        "vm_name": vm["name"],
        "alias": disk["alias"],
        "description": f"night {number}",
        "taken_at": "2026-01-02T03:04:05.678Z",
        "made_at": None,
        "size": number * GIB,
        "returns": None,
        "depth": number,
        "layers": 4,
        "state": "ok",
        "removable": True,
        "reason": None,
    }


def _asked(world: World) -> Row:
    return [request for method, request in world.asked if method == "list_disk_snapshots"][-1]


def test_a_page_is_asked_for_with_sort_and_filter(http: httpx.Client, world: World, domain: Row) -> None:
    path = f"/storage-domains/{domain['id']}/disk-snapshots"
    query = {"sort": "-returns", "min_size": "5", "removable": "true", "text": "night", "limit": "2"}
    answer = http.get(path, params=query)
    assert (answer.status_code, answer.json()["total"], answer.json()["next"]) == (200, 4, "2")
    assert 'after=2>; rel="next"' in answer.headers["Link"]
    asked = _asked(world)
    assert (asked["sort"], asked["min_size"], asked["removable"], asked["text"]) == ("-returns", 5, True, "night")


@pytest.mark.parametrize("query", [{"sort": "mood"}, {"min_size": "big"}, {"after": "x"}, {"taken_before": "monday"}])
def test_a_wrong_query_is_named(http: httpx.Client, domain: Row, query: dict[str, str]) -> None:
    answer = http.get(f"/storage-domains/{domain['id']}/disk-snapshots", params=query)
    assert answer.status_code == 422
    assert next(iter(query)) in str(answer.json()["fields"])


def test_the_command_lists_filters_and_sums(door: Door, world: World, vm: Row, domain: Row) -> None:
    options = ("--vm", vm["name"], "--older-than", "30d", "--min-size", "1M", "--removable", "--sort", "depth")
    ran = door.command("domain", "snapshots", domain["name"], *options)
    assert ran.code == 0, ran
    assert "3 of 3 disk snapshots; all of them: 3.0 GiB" in ran.err
    assert "night 2" in ran.out
    asked = _asked(world)
    assert (asked["vm_id"], asked["min_size"], asked["removable"], asked["sort"]) == (vm["id"], 2**20, True, "depth")
    assert asked["taken_before"] < "2100"
    assert len(door.command("domain", "snapshots", domain["name"], "--limit", "2", "--json").data) == 2


def test_a_rescan_and_the_leftovers(door: Door, world: World, domain: Row) -> None:
    nothing = door.command("domain", "leftovers", domain["name"])
    assert "never scanned" in nothing.err
    what = {"code": "foreign_file", "message": "/d/x is no volume.", "action": "Move it elsewhere.", "path": "/d/x"}
    world.shelf.leftovers = [{**what, "disk_id": None, "volume_id": None, "size": None}]
    assert "4 disk snapshots of 1 disks, 1 leftovers" in door.command("domain", "rescan", domain["name"]).out
    told = door.command("domain", "leftovers", domain["name"])
    assert "Move it elsewhere." in told.out
    assert "scanned at 2026-01-02 03:04:05 UTC" in told.err


@pytest.mark.parametrize("option", [("--older-than", "soon"), ("--min-size", "big")])
def test_a_wrong_age_or_size_is_wrong_use(door: Door, domain: Row, option: tuple[str, str]) -> None:
    ran = door.command("domain", "snapshots", domain["name"], *option)
    assert ran.code == 2
    assert option[1] in ran.err


def test_what_a_filter_lists_is_removed_when_it_is_as_many_as_expected(door: Door, world: World, domain: Row) -> None:
    words = ("domain", "snapshots", domain["name"], "--text", "night", "--remove")
    bare = door.command(*words, "--yes")
    assert (bare.code, "needs --expect" in bare.err) == (2, True), bare
    wrong = door.command(*words, "--yes", "--expect", "7")
    assert (wrong.code, "4 match; 7 were expected" in wrong.err) == (2, True), wrong
    asked = door.command(*words)
    assert (asked.code, "4 disk snapshot(s) keep cannot be returned to" in asked.err) == (2, True), asked
    assert not [request for method, request in world.asked if method == "remove_snapshots"]
    for one in world.shelf.disk_snapshots:
        flags = {"restorable": True, "partly_removed": False, "quiesced": False, "live": True, "state": "ok"}
        world.put("snapshot", id=one["snapshot_id"], vm_id=one["vm_id"], disks=[], job_id=None, **flags)
    assert door.command(*words, "--dry-run").code == 0
    assert door.command(*words, "--yes", "--expect", "4").code == 0
    sent = [request for method, request in world.asked if method == "remove_snapshots"]
    assert [request["dry_run"] for request in sent] == [True, False]
    given = {"domain_id": domain["id"], "text": "night", "taken_before": "2026-01-02T03:04:05.678001Z"}
    for request in sent:
        assert {name: value for name, value in request["listed"].items() if value is not None} == given
        assert (request["expected_count"], request["disk_snapshots"], request["filter"]) == (4, None, None)
