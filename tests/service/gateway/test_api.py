"""The API over HTTP: a real gateway on a real RabbitMQ, contract-checked fakes behind it."""

from __future__ import annotations

import json
import pathlib
import socket
import uuid
from http.client import HTTPResponse

import httpx
import pytest

from contracts import errors
from contracts import inventory as promises
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.service.gateway.door import Door
from tests.service.gateway.world import Row, World


def new() -> str:
    return str(uuid.uuid4())


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, object] = answer.json()
    assert (body["code"], body["status"]) == (code, status)
    assert body["detail"]
    assert body["correlation_id"]
    return body


def test_what_is_made_can_be_read_changed_and_deleted(http: httpx.Client) -> None:
    made = http.post("/data-centers", json={"name": f"dc-{new()}"})
    assert made.status_code == 201
    here = made.headers["Location"].removeprefix("/api/v1")
    assert http.get(here).json() == made.json()
    changed = http.patch(here, json={"description": "north"}, headers={"If-Match": made.headers["ETag"]})
    assert (changed.json()["description"], changed.headers["ETag"]) == ("north", '"2"')
    gone = http.delete(here, headers={"If-Match": changed.headers["ETag"]})
    assert (gone.status_code, gone.content) == (204, b"")
    problem(http.get(here), 404, "not_found")


def test_a_stale_etag_is_refused_and_a_missing_one_is_asked_for(http: httpx.Client, vm: Row) -> None:
    path = f"/vms/{vm['id']}"
    problem(http.patch(path, json={"cpus": 2}, headers={"If-Match": '"7"'}), 412, "version_mismatch")
    problem(http.patch(path, json={"cpus": 2}), 428, "precondition_required")
    problem(http.delete(path, headers={"If-Match": "seven"}), 422, "bad_request")


@pytest.mark.parametrize(
    ("head", "sent"), [("Transfer-Encoding: chunked", "zz\r\n{}\r\n0\r\n\r\n"), ("Content-Length: 50", "{}")]
)
def test_a_request_that_is_no_http_is_refused(door: Door, head: str, sent: str) -> None:
    lines = ["POST /api/v1/data-centers HTTP/1.1", f"Authorization: Bearer {door.token}", head, "", sent]
    with socket.create_connection((httpx.URL(door.address).host, httpx.URL(door.address).port or 0), 20) as line:
        line.sendall("\r\n".join(lines).encode())
        line.shutdown(socket.SHUT_WR)
        answer = HTTPResponse(line)
        answer.begin()
        found = json.loads(answer.read())
    assert (answer.status, found["code"]) == (400, "bad_http")
    assert found["detail"] == "The HTTP request cannot be understood: its body ends too early, or its chunks are none."


@pytest.mark.parametrize("key", ["2f1c8d1e-5a0b-4c3e-9a55-0d6c3b7a9e01", "order-66"])
def test_the_same_key_and_body_ask_for_the_same_thing(http: httpx.Client, world: World, key: str) -> None:
    body, head = {"name": f"dc-{key[:8]}"}, {"Idempotency-Key": key}
    first, second = (http.post("/data-centers", json=body, headers=head) for _ in range(2))
    assert first.json() == second.json()
    problem(http.post("/data-centers", json={"name": "x"}, headers=head), 422, "idempotency_conflict")


def test_a_uuid_as_key_becomes_the_id(http: httpx.Client) -> None:
    key = new()
    assert http.post("/data-centers", json={"name": key}, headers={"Idempotency-Key": key}).json()["id"] == key


def test_a_repeated_snapshot_request_names_one_job_and_one_snapshot(http: httpx.Client, vm: Row) -> None:
    asked = [http.post(f"/vms/{vm['id']}/snapshots", json={}, headers={"Idempotency-Key": "one"}) for _ in range(2)]
    assert [answer.status_code for answer in asked] == [202, 202], asked[0].text
    assert asked[0].json()["id"] == asked[1].json()["id"]
    assert asked[0].json()["id"] != asked[0].json()["snapshot_id"]
    assert http.get(asked[0].headers["Location"].removeprefix("/api/v1")).status_code == 200


def _snapshots(world: World, vm: Row, count: int = 2) -> list[str]:
    flags = {"restorable": True, "partly_removed": False, "quiesced": False, "live": True, "state": "ok"}
    rows = [world.put("snapshot", id=new(), vm_id=vm["id"], disks=[], job_id=None, **flags) for _ in range(count)]
    return [row["id"] for row in rows]


def test_a_removal_of_many_is_planned_begun_cancelled_and_retried(http: httpx.Client, world: World, vm: Row) -> None:
    ids = _snapshots(world, vm)
    planned = http.post("/removals", json={"filter": {"vm_id": vm["id"]}, "dry_run": True})
    assert (planned.status_code, planned.json()["state"]) == (200, "planned"), planned.text
    assert "Location" not in planned.headers
    body = {"filter": {"vm_id": vm["id"]}, "expected_count": 2}
    begun = http.post("/removals", json=body, headers={"Idempotency-Key": "all-of-it"})
    assert (begun.status_code, begun.json()["snapshot_count"]) == (202, 2), begun.text
    assert begun.headers["Location"] == f"/api/v1/jobs/{begun.json()['id']}"
    id = begun.json()["id"]
    assert [item["snapshot_id"] for item in http.get(f"/removals/{id}").json()["items"]] == ids
    assert http.post(f"/removals/{id}/cancel").json()["state"] == "undone"
    assert http.post(f"/removals/{id}/cancel").status_code == 409
    again = http.post(f"/removals/{id}/retries", json={"bandwidth": 1024})
    assert (again.status_code, again.json()["id"] == id) == (202, False)


def test_a_filter_that_matches_another_number_is_a_conflict(http: httpx.Client, world: World, vm: Row) -> None:
    _snapshots(world, vm)
    wrong = http.post("/removals", json={"filter": {"vm_id": vm["id"]}, "expected_count": 7})
    assert (wrong.status_code, wrong.json()["code"]) == (409, "count_differs")
    assert wrong.json()["fields"] == {"found": 2, "expected": 7}
    none = http.post("/removals", json={"snapshots": []})
    assert (none.status_code, none.json()["code"]) == (409, "nothing_to_remove")


def test_nics_get_the_same_ids_when_asked_twice(http: httpx.Client, world: World, vm: Row) -> None:
    body = {"name": "n", "cluster_id": vm["cluster_id"], "memory": 2**30, "nics": [{"name": "eth0"}, {"name": "eth1"}]}
    key = {"Idempotency-Key": new()}
    first, second = (http.post("/vms", json=body, headers=key).json() for _ in range(2))
    assert [nic["id"] for nic in first["nics"]] == [nic["id"] for nic in second["nics"]]
    assert len({nic["id"] for nic in first["nics"]}) == 2


def test_a_list_comes_in_pages_that_link_to_each_other(http: httpx.Client, world: World, vm: Row) -> None:
    for number in range(5):
        world.put("cluster", id=new(), name=f"c{number}", data_center_id=vm["data_center_id"])
    first = http.get("/clusters", params={"limit": 4, "data_center_id": vm["data_center_id"]})
    assert (len(first.json()["items"]), first.json()["total"]) == (4, 6)
    second = http.get(first.links["next"]["url"].removeprefix("/api/v1"))
    assert len(second.json()["items"]) == 2
    assert "next" not in second.links


def test_the_user_and_the_request_id_travel_to_the_service(
    rabbit: Broker, bus: Bus, http: httpx.Client, world: World
) -> None:
    answer = http.get("/vms", headers={"X-Request-ID": "from-outside-1"})
    assert answer.headers["X-Request-ID"] == "from-outside-1"
    odd = http.get("/vms", headers={"X-Request-ID": "a b\tc"})
    assert odd.headers["X-Request-ID"] != "a b\tc"


def test_a_declared_error_keeps_its_code_status_and_fields(http: httpx.Client, vm: Row) -> None:
    body = problem(http.post(f"/vms/{vm['id']}/start"), 409, "vm_wrong_state")
    assert body["fields"] == {"vm_id": vm["id"], "state": "running", "action": "start", "needs": "down"}
    assert "drystone vm show" in str(body["hint"])


def test_power_is_asked_for_at_sub_resources(http: httpx.Client, vm: Row) -> None:
    assert http.post(f"/vms/{vm['id']}/shutdown").json()["state"] == "shutting_down"
    assert http.post(f"/vms/{vm['id']}/power-off").json()["state"] == "down"
    assert http.post(f"/vms/{vm['id']}/start", json={"host_id": None}).json()["state"] == "running"


def test_a_job_is_followed_limited_and_cancelled(http: httpx.Client, vm: Row) -> None:
    job = http.post(f"/vms/{vm['id']}/snapshots", json={"description": "x"}).json()
    assert http.put(f"/jobs/{job['id']}/bandwidth", json={"bandwidth": 1000}).status_code == 200
    assert http.post(f"/jobs/{job['id']}/cancel").json()["state"] == "undone"
    problem(http.post(f"/jobs/{job['id']}/cancel"), 409, "too_late")


def test_a_plug_is_a_change_of_the_disk(http: httpx.Client, vm: Row) -> None:
    path = f"/disks/{vm['disks'][0]['id']}"
    etag = http.get(path).headers["ETag"]
    assert http.patch(path, json={"vm_id": None}, headers={"If-Match": etag}).json()["vm_id"] is None
    assert http.get(f"{path}/chain").json()["volumes"][0]["active"] is True


# -- bad input; docs/bad-input.md lists these -------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"name"', "delimiter"),
        (b"[1]", "list"),
        (b"\xff\xfe", "utf-8"),
        (b'{"name": NaN}', "NaN"),
        (b'{"name": "\\ud800"}', "Unicode"),
        (b'{"description": "a\\u0000b"}', "NUL"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested"),
        (b'{"a":' + b"[" * 60 + b"]" * 60 + b"}", "nested"),
    ],
)
def test_a_body_that_is_no_json_object_says_why(http: httpx.Client, body: bytes, reason: str) -> None:
    answer = http.post("/data-centers", content=body, headers={"Content-Type": "application/json"})
    assert reason in str(problem(answer, 400, "bad_body")["detail"])


def test_only_json_is_taken(http: httpx.Client) -> None:
    answer = http.post("/data-centers", content=b"name=x", headers={"Content-Type": "text/plain"})
    problem(answer, 415, "unsupported_media")


def test_a_body_over_1_mib_is_refused_with_and_without_a_length(http: httpx.Client) -> None:
    head = {"Content-Type": "application/json"}
    large = b'{"name": "' + b"x" * 2**20 + b'"}'
    problem(http.post("/data-centers", content=large, headers=head), 413, "body_too_large")
    parts = (large[i : i + 65536] for i in range(0, len(large), 65536))
    problem(http.post("/data-centers", content=parts, headers=head), 413, "body_too_large")


def test_unknown_addresses_and_methods_are_problems_too(http: httpx.Client) -> None:
    problem(http.get("/nothing"), 404, "no_such_address")
    problem(http.get("/../../etc/passwd"), 404, "no_such_address")
    answer = http.put("/vms")
    problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/vms/web-1", "id"),
        ("/vms/%00", "id"),
        ("/vms?limit=0", "limit"),
        ("/vms?limit=many", "limit"),
        ("/vms?limit=5&limit=6", "limit"),
        ("/vms?colour=red", "colour"),
        ("/vms?cluster_id=x", "cluster_id"),
        ("/jobs?state=asleep", "state"),
        ("/events?type=weather", "type"),
        ("/events?entity=web-1", "entity"),
    ],
)
def test_a_wrong_id_or_filter_is_named(http: httpx.Client, path: str, field: str) -> None:
    body = problem(http.get(path), 422, "bad_request")
    assert list(body["fields"]["errors"]) == [field]  # type: ignore[index]


def test_every_wrong_field_of_a_body_is_named(http: httpx.Client) -> None:
    body = {"name": "a/b", "memory": -1, "nics": [{"name": "eth0", "mac": "x"}], "colour": "red"}
    found = problem(http.post("/vms", json=body), 422, "bad_request")
    assert set(found["fields"]["errors"]) == {"name", "memory", "nics", "colour", "cluster_id"}  # type: ignore[index]
    assert "nics.0.mac: Not a MAC address" in str(found["detail"])


def test_ids_of_the_address_are_not_taken_from_the_body(http: httpx.Client, vm: Row) -> None:
    problem(http.post(f"/vms/{vm['id']}/snapshots", json={"vm_id": new()}), 422, "bad_request")


def test_an_odd_key_is_refused(http: httpx.Client) -> None:
    answer = http.post("/data-centers", json={"name": "x"}, headers={"Idempotency-Key": "x" * 300})
    problem(answer, 422, "bad_request")


# -- tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v1/vms", "/api/v1/events", "/api/v1/openapi.json", "/api/v1/", "/nothing"])
def test_nothing_but_healthz_is_reachable_without_a_token(door: Door, path: str) -> None:
    for head in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {door.token}"}):
        answer = httpx.get(door.address + path, headers=head, trust_env=False)
        problem(answer, 401, "unauthorized")
        assert "Bearer" in answer.headers["WWW-Authenticate"]
    assert httpx.get(f"{door.address}/healthz", trust_env=False).json() == {"status": "ok"}


def test_a_browser_reads_with_basic_and_changes_nothing_with_it(door: Door) -> None:
    page = httpx.get(f"{door.address}/api/v1/", auth=("any", door.token), trust_env=False)
    assert "Drystone API" in page.text
    assert "http" + "s://" not in page.text, "the page must need no network"
    answer = httpx.post(f"{door.address}/api/v1/data-centers", auth=("any", door.token), json={}, trust_env=False)
    problem(answer, 401, "unauthorized")


def test_the_token_file_is_private_and_the_log_names_it_without_its_content(door: Door) -> None:
    assert door.token_file.stat().st_mode & 0o777 == 0o600
    assert str(door.token_file) in door.log
    assert door.token not in door.log


# -- who is away ------------------------------------------------------------------------------------------


def test_a_service_that_is_away_is_named_and_the_others_go_on(rabbit: Broker, folder: pathlib.Path) -> None:
    host = f"away{uuid.uuid4().hex[:8]}"
    uri = rabbit.add_host(host)
    world, door = World(), Door(folder, uri).start()
    try:
        with Bus(uri) as bus, door.http() as http:
            world.serve(bus, "inventory")
            answer = http.get("/jobs")
            assert "snapshots" in str(problem(answer, 503, "service_away")["detail"])
            assert int(answer.headers["Retry-After"]) > 0
            assert http.get("/vms").status_code == 200
            found = {row["name"]: row["answers"] for row in http.get("/health").json()["services"]}
            assert found == {"inventory": True, "snapshots": False}
    finally:
        assert door.stop() == 0


def test_a_service_that_is_silent_ends_in_no_answer_within_the_deadline(rabbit: Broker, folder: pathlib.Path) -> None:
    host = f"mute{uuid.uuid4().hex[:8]}"
    uri = rabbit.add_host(host)
    door = Door(folder, uri).start()
    try:
        with Bus(uri) as bus, door.http() as http:
            bus.answer(promises.get_vm, _late)
            body = problem(http.get(f"/vms/{new()}"), 503, "no_answer")
            assert body["fields"]["service"] == "inventory"  # type: ignore[index]
    finally:
        door.stop()


def _late(_request: Row) -> Row:
    import time

    time.sleep(promises.get_vm.deadline + 2)
    raise errors.NotFound(kind="vm", id="x")


def test_without_rabbitmq_the_door_is_open_and_says_so(folder: pathlib.Path) -> None:
    door = Door(folder, "amqp://guest:secret@127.0.0.1:9//").start()
    try:
        with door.http() as http:
            body = problem(http.get("/vms"), 503, "bus_away")
            assert "RabbitMQ does not answer" in str(body["detail"])
            assert "secret" not in str(body)
            assert http.get("/health").json()["status"] == "degraded"
            problem(http.get("/vms/x"), 422, "bad_request")
    finally:
        assert door.stop() == 0


def test_a_wrong_password_of_rabbitmq_ends_the_gateway_with_a_sentence(rabbit: Broker, folder: pathlib.Path) -> None:
    door = Door(folder, rabbit.uri_of("drystone", "wrong"))
    assert door.spawn().wait(30) != 0
    assert "refuses this user and password" in door.log
    assert "wrong@" not in door.log


def test_a_token_file_that_others_can_read_ends_the_gateway_with_a_sentence(folder: pathlib.Path) -> None:
    (folder / "admin-token").write_text("x" * 43)
    (folder / "admin-token").chmod(0o644)
    door = Door(folder, "amqp://127.0.0.1:9//")
    assert door.spawn().wait(30) != 0
    assert "chmod 600" in door.log


def test_a_port_that_is_taken_ends_the_gateway_with_a_sentence(door: Door, folder: pathlib.Path) -> None:
    second = Door(folder, door.amqp_uri, {"HTTP_PORT": door.address.rpartition(":")[2]})
    assert second.spawn().wait(30) != 0
    assert "cannot listen" in second.log


def test_the_gateway_stays_small(door: Door, http: httpx.Client) -> None:
    http.get("/openapi.json")
    status = pathlib.Path(f"/proc/{door.pid}/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert kilobytes < 90 * 1024
