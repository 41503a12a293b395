"""How HTTP maps onto a promise's request."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from client import api
from contracts import errors, inventory, snapshots
from contracts.promise import Rpc
from gateway.api import table
from gateway.api.route import Route, request_of

GET = Route("GET", "/vms", inventory.list_vms, "")
CHANGE = Route("PATCH", "/vms/{id}", inventory.change_vm, "", parts=("nics",))
SNAPSHOT = Route("POST", "/vms/{vm_id}/snapshots", snapshots.create_snapshot, "", 202, ids=("job_id", "id"))
ID = "0b0f4c3e-7f0e-4f43-9a3c-2f6a3f1c9f10"


def asked(route: Route, query: Any = None, body: Any = None, path: Any = None, **head: str) -> dict[str, Any]:
    heads = {name.replace("_", "-"): value for name, value in head.items()}
    return request_of(route, path or {}, query or {}, body or {}, heads.get)


def test_a_query_takes_the_types_of_the_request() -> None:
    assert asked(GET, {"limit": ["5"], "name": ["5"]}) == {"limit": 5, "name": "5"}


@pytest.mark.parametrize("query", [{"limit": ["5", "6"]}, {"colour": ["red"]}])
def test_a_query_that_cannot_be_meant_is_refused(query: dict[str, list[str]]) -> None:
    with pytest.raises(errors.BadRequest):
        asked(GET, query)


def test_a_change_takes_its_version_from_if_match() -> None:
    assert asked(CHANGE, path={"id": ID}, body={"cpus": 2}, If_Match='"3"') == {"id": ID, "version": 3, "cpus": 2}
    with pytest.raises(errors.PreconditionRequired):
        asked(CHANGE, path={"id": ID})
    for odd in ('W/"3"', "3", "*", '"x"'):
        with pytest.raises(errors.BadRequest):
            asked(CHANGE, path={"id": ID}, If_Match=odd)


def test_a_change_does_not_take_version_or_id_from_the_body() -> None:
    with pytest.raises(errors.BadRequest):
        asked(CHANGE, path={"id": ID}, body={"version": 1}, If_Match='"3"')


def test_ids_follow_from_the_key() -> None:
    first, second = (asked(SNAPSHOT, path={"vm_id": ID}, Idempotency_Key="nightly-1") for _ in range(2))
    assert first == second
    assert len({first["job_id"], first["id"], ID}) == 3
    assert asked(SNAPSHOT, path={"vm_id": ID}, Idempotency_Key=ID)["job_id"] == ID
    assert asked(SNAPSHOT, path={"vm_id": ID})["id"] != asked(SNAPSHOT, path={"vm_id": ID})["id"]


def test_an_id_in_the_body_wins_over_the_key() -> None:
    assert asked(SNAPSHOT, path={"vm_id": ID}, body={"id": ID}, Idempotency_Key="k")["id"] == ID


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "ä", "a b"])
def test_an_odd_key_is_refused(key: str) -> None:
    with pytest.raises(errors.BadRequest):
        asked(SNAPSHOT, path={"vm_id": ID}, Idempotency_Key=key)


def test_parts_get_ids_from_the_whole_and_their_name() -> None:
    body = {"nics": [{"name": "eth0"}, {"name": "eth1", "id": ID}, "odd", {"mac": "x"}]}
    nics = asked(CHANGE, path={"id": ID}, body=body, If_Match='"1"')["nics"]
    assert nics[0]["id"] == str(uuid.uuid5(uuid.UUID(ID), "eth0"))
    assert nics[1:] == [{"name": "eth1", "id": ID}, "odd", {"mac": "x"}]


def test_every_row_of_the_table_can_be_filled() -> None:
    for route in table.ROUTES:
        assert set(route.ids) <= set(route.rest), route
        assert set(route.in_path) <= set(route.promise.request._declared_fields), route
        assert (route.status == 204) == (route.method == "DELETE" and route.promise.reply is inventory.Gone), route
        assert (route.status in {201, 202}) == bool(route.location), route


def test_no_address_is_declared_twice() -> None:
    pairs = [(route.method, route.path) for route in table.ROUTES]
    assert len(pairs) == len(set(pairs))


# What services ask of each other, and people do not.
INSIDE = {"check_idle", "vm_lease"}


def test_every_promise_for_people_has_an_address() -> None:
    served = {route.promise.method for route in table.ROUTES}
    promised = {p.method for m in (inventory, snapshots) for p in vars(m).values() if isinstance(p, Rpc)}
    assert promised - served == INSIDE


def test_the_client_waits_longer_than_any_promise() -> None:
    assert max(route.promise.deadline for route in table.ROUTES) + 10 < api.PATIENCE
