"""Removals of what a filter matches: of snapshots, or of the disk snapshots that the list of a domain shows."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from contracts import errors, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.site import Site, new


def _left(site: Site, vm: str) -> list[str]:
    return [one["id"] for one in site.call(snapshots.list_snapshots, vm_id=vm, limit=1000)["items"]]


@pytest.mark.usefixtures("running")
def test_a_filter_needs_the_count_that_it_matches(site: Site, host: FakeAgent) -> None:
    vm, other = site.vm(host), site.vm(host)
    nightly = [site.taken(vm, description=f"Nightly {number} 100%") for number in range(2)]
    kept = [site.taken(vm, description="before upgrade"), site.taken(other, description="nightly of another")]
    words: dict[str, Any] = {"filter": {"text": "NIGHTLY", "vm_id": vm}}
    assert site.remove_many(**words, dry_run=True)["snapshot_count"] == 2
    with pytest.raises(errors.CountDiffers) as caught:
        site.remove_many(**words, expected_count=3)
    assert caught.value.fields == {"found": 2, "expected": 3}
    with pytest.raises(errors.BadRequest, match="number of snapshots"):
        site.remove_many(**words)
    assert site.remove_many(filter={"text": "100%"}, dry_run=True)["snapshot_count"] == 2
    assert site.remove_many(filter={"domain_id": site.domain["id"]}, dry_run=True)["snapshot_count"] == 4
    with pytest.raises(errors.NothingToRemove):
        site.remove_many(filter={"taken_before": "2020-01-01T00:00:00Z"}, dry_run=True)
    assert site.end_of(site.remove_many(**words, expected_count=2))["state"] == "done"
    assert [*_left(site, vm), *_left(site, other)] == kept
    assert nightly[0] not in kept


def test_what_the_list_of_a_domain_has_goes_by_its_filter(
    site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path)
    vm, other = site.vm(host, disks=2), site.vm(host)
    large, small = site.disk_ids(vm)
    site.volumes(small)[site.disks[small]["first_volume_id"]].actual_size = 7 * MIB
    first, second = site.taken(vm, description="Night 1"), site.taken(vm, description="Night 2")
    third = site.taken(other)
    for condition, matches in _CONDITIONS:
        wanted = {"domain_id": site.domain["id"], **condition}
        rows = site.call(snapshots.list_disk_snapshots, id=site.domain["id"], **condition)["items"]
        listed = sorted((row["snapshot_id"], row["disk_id"]) for row in rows)
        assert len(listed) == matches, condition
        plan = site.remove_many(listed=wanted, dry_run=True)
        assert sorted((item["snapshot_id"], item["disk_id"]) for item in plan["items"]) == listed
    wanted = {"domain_id": site.domain["id"], "min_size": 50 * MIB, "removable": True}
    with pytest.raises(errors.CountDiffers) as caught:
        site.remove_many(listed=wanted, expected_count=1)
    assert caught.value.fields == {"found": 2, "expected": 1}
    with pytest.raises(errors.BadRequest, match="number of snapshots"):
        site.remove_many(listed=wanted)
    with pytest.raises(errors.NothingToRemove):
        site.remove_many(listed={"domain_id": new()}, dry_run=True)
    assert site.end_of(site.remove_many(listed=wanted, expected_count=2))["state"] == "done"
    assert (_left(site, vm), _left(site, other)) == ([first, second], [])
    left = site.call(snapshots.get_snapshot, id=first)
    assert (left["partly_removed"], [disk["disk_id"] for disk in left["disks"]]) == (True, [small])
    assert third not in _left(site, vm)
    assert large not in [disk["disk_id"] for disk in left["disks"]]
    assert site.agrees(host, vm)


_CONDITIONS: tuple[tuple[dict[str, Any], int], ...] = (
    ({}, 5),
    ({"text": "NIGHT"}, 4),
    ({"text": "disk 1"}, 2),
    ({"min_size": 50 * MIB}, 2),
    ({"min_depth": 1}, 2),
    ({"state": "ok", "min_depth": 1, "text": "disk 0"}, 1),
    ({"removable": True, "taken_before": "2100-01-01T00:00:00Z"}, 5),
)
