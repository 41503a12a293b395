"""The API's description is made from the routes and the contracts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from client import facts
from contracts import errors
from contracts import fields as f
from gateway.api import openapi, page, shapes, table


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return openapi.describe(table.ROUTES)


def test_every_reference_leads_somewhere(api: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(api)))
    assert names <= set(api["components"]["schemas"])


def test_a_body_holds_neither_path_ids_nor_versions(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    assert set(schemas["JobBandwidthBody"]["properties"]) == {"bandwidth"}
    assert "version" not in schemas["ChangeVmBody"]["properties"]
    assert schemas["CreateSnapshotBody"].get("required", []) == []
    assert "id" not in schemas["NewNicBody"]["required"]


def test_declared_errors_appear_at_their_status(api: dict[str, Any]) -> None:
    start = api["paths"]["/api/v1/vms/{id}/start"]["post"]["responses"]
    assert "vm_wrong_state" in start["409"]["description"]
    assert "service_away" in start["503"]["description"]


def test_rules_become_json_schema() -> None:
    made = shapes.Shapes()
    assert made.field(f.count(1, 9, load_default=None, allow_none=True)) == {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 9,
        "default": None,
    }
    assert made.field(f.choice("a", "b", allow_none=True))["enum"] == ["a", "b", None]
    assert made.field(f.name())["maxLength"] == 255
    assert re.search(made.field(f.uid())["pattern"], "0b0f4c3e-7f0e-4f43-9a3c-2f6a3f1c9f10")
    assert len(made.field(f.mac())["allOf"]) == 1


def test_the_page_shows_every_address_and_problem(api: dict[str, Any]) -> None:
    html = page.render(api)
    assert all(path in html for path in api["paths"])
    assert all(f"id={code}" in html for code in errors.all_problems())
    assert "<script" not in html


@pytest.mark.parametrize(
    "kind",
    [
        "DataCenter",
        "Cluster",
        "Host",
        "StorageDomain",
        "Disk",
        "Nic",
        "Vm",
        "Snapshot",
        "SnapshotDisk",
        "Job",
        "JobStep",
        "Progress",
        "Reason",
        "Merge",
        "Removal",
        "RemovalItem",
        "RemovalMerge",
        "RemovalDomain",
        "Chain",
        "ChainVolume",
    ],
)
def test_the_clients_types_are_those_of_the_api(api: dict[str, Any], kind: str) -> None:
    assert set(getattr(facts, kind).__annotations__) == set(api["components"]["schemas"][kind]["properties"])
