"""What is found on a domain beside the chains of its disks."""

from __future__ import annotations

import dataclasses
from typing import Any

from contracts import doctor
from services.snapshots import survey

A, B, V = (f"00000000-0000-4000-8000-00000000000{digit}" for digit in "123")
DOMAIN = {"data_center_id": A, "layout": 5, "path": "/srv/d"}


def row(disk_id: str, problem: str | None = None) -> dict[str, Any]:
    path = f"/srv/d/x/images/{disk_id}/{V}"
    own = {"problem": problem, "actual_size": 4096, "template_disk_id": None}
    return {"disk_id": disk_id, "volume_id": V, "path": path, **own}


def scan(*volumes: dict[str, Any], foreign: tuple[tuple[str, str | None], ...] = ()) -> dict[str, Any]:
    files = [{"path": path, "backing": backing} for path, backing in foreign]
    return {"volumes": list(volumes), "foreign": files}


def disk(disk_id: str, state: str = "ok") -> dict[str, Any]:
    return {"id": disk_id, "alias": "root", "state": state}


def codes(found: list[survey.Finding]) -> list[str]:
    return [one.code for one in found]


def test_a_domain_in_order_has_no_findings() -> None:
    assert survey.of_files(scan(row(A)), [disk(A)]) == []
    assert survey.of_domain(DOMAIN, {"data_center_id": A, "version": 5}) == []


def test_metadata_that_name_another_owner_are_found() -> None:
    found = survey.of_domain(DOMAIN, {"data_center_id": None, "version": 4})
    assert codes(found) == ["metadata_differs", "metadata_differs"]
    assert "None on the storage" in found[0].message


def test_each_finding_has_its_name() -> None:
    foreign = (("/f/_remove_me_1", None), ("/f/holiday.jpg", None), ("/f/clone.qcow2", V))
    found = survey.of_files(scan(row(A, "The header is damaged."), foreign=foreign), [disk(B)])
    expected = ["folder_without_disk", "disk_without_folder", "damaged_volume", "half_deleted"]
    assert codes(found) == [*expected, "foreign_file", "foreign_file"]
    assert "stands on" in found[-1].message
    assert doctor.Finding(many=True).load([dataclasses.asdict(one) for one in found])


def test_a_disk_that_is_being_made_needs_no_folder_yet() -> None:
    assert survey.of_files(scan(), [disk(A, "creating"), disk(B, "deleting")]) == []


def test_a_volume_that_no_disk_and_no_snapshot_knows_is_told_with_what_helps() -> None:
    first, known, stray = (f"00000000-0000-4000-8000-0000000000a{digit}" for digit in "123")
    rows = scan(*({**row(A), "volume_id": one} for one in (first, known, stray)), row(B))
    (found,) = survey.without_disk(rows, [disk(A) | {"first_volume_id": first}], {known})
    assert (found.code, found.volume_id) == ("volume_without_disk", stray)
    assert found.action.endswith(f"drystone doctor disk {A}")


def test_volumes_of_a_disk_that_is_being_made_are_nobodys_leftovers() -> None:
    making = disk(A, "creating") | {"first_volume_id": B}
    assert survey.without_disk(scan(row(A)), [making], set()) == []


def test_what_a_thin_disk_stands_on_belongs_to_its_template() -> None:
    first, shared = (f"00000000-0000-4000-8000-0000000000a{digit}" for digit in "12")
    linked = {**row(A), "volume_id": shared, "template_disk_id": B}
    own = {**row(B), "volume_id": shared, "template_disk_id": B}
    disks = [disk(A) | {"first_volume_id": first}, disk(B) | {"first_volume_id": shared}]
    assert survey.without_disk(scan(linked, own), disks, set()) == []
