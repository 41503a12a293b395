"""The real `drystone` command, a process of its own, against a real gateway."""

from __future__ import annotations

import uuid

import pytest
import yaml

from tests.service.gateway.door import Door, run
from tests.service.gateway.world import GIB, Row, World


def test_a_whole_set_up_by_names(door: Door, world: World) -> None:
    tag = uuid.uuid4().hex[:8]
    assert door.command("data-center", "create", f"dc-{tag}").code == 0
    assert door.command("cluster", "create", f"cl-{tag}", "--data-center", f"dc-{tag}").code == 0
    host = str(uuid.uuid4())
    assert door.command("host", "create", f"h-{tag}", "--cluster", f"cl-{tag}", "--id", host).code == 0
    made = door.command("domain", "create", f"sd-{tag}", "--data-center", f"dc-{tag}", "--path", "/srv/d", "--json")
    assert made.data["path"] == "/srv/d"
    vm = ("vm", "create", f"vm-{tag}", "--cluster", f"cl-{tag}", "-m", "1GiB", "--nic", "eth0,model=e1000", "--json")
    assert (door.command(*vm).data["memory"], world.rows["vm"][_last_id(world)]["nics"][0]["model"]) == (GIB, "e1000")
    disk = ("disk", "create", "root", "--domain", f"sd-{tag}", "-s", "2G", "--vm", f"vm-{tag}", "--json")
    assert door.command(*disk).data["capacity"] == 2 * GIB
    assert f"vm-{tag} is running." in door.command("vm", "start", f"vm-{tag}").out
    assert door.command("vm", "delete", f"vm-{tag}", "--yes").code == 0


def _last_id(world: World) -> str:
    return list(world.rows["vm"])[-1]


@pytest.mark.parametrize(
    "noun", ["data-center", "cluster", "host", "domain", "disk", "vm", "template", "snapshot", "job", "merge"]
)
def test_every_noun_lists_as_table_json_and_yaml(door: Door, vm: Row, noun: str) -> None:
    table, as_json, as_yaml = (door.command(noun, "list", *form) for form in ((), ("--json",), ("--yaml",)))
    assert table.code == 0, table
    assert as_json.data == yaml.safe_load(as_yaml.out)


def test_a_vm_is_shown_by_name_id_and_beginning_of_an_id(door: Door, vm: Row) -> None:
    shown = [door.command("vm", "show", word, "--json").data for word in (vm["name"], vm["id"], vm["id"][:13])]
    assert shown[0] == shown[1] == shown[2]
    card = door.command("vm", "show", vm["name"]).out
    assert "1.0 GiB" in card
    assert vm["disks"][0]["alias"] in card


def test_a_snapshot_is_taken_followed_and_removed(door: Door, world: World, vm: Row) -> None:
    taken = door.command("snapshot", "create", vm["name"], "-d", "before", "--json")
    assert taken.data["state"] == "done"
    assert "finish, 2.0 GiB of 3.0 GiB, 1.0 GiB/s" in taken.err
    id = taken.data["snapshot_id"]
    flags = {"restorable": True, "partly_removed": False, "quiesced": False, "live": True}
    world.put("snapshot", id=id, vm_id=vm["id"], description="before", state="ok", disks=[], job_id=None, **flags)
    refused = door.command("snapshot", "delete", "before", "--vm", vm["name"])
    assert refused.code == 2
    assert "cannot be returned to" in refused.err
    removed = door.command("snapshot", "delete", "before", "--vm", vm["name"], "--yes", "--bandwidth", "10M", "--json")
    assert (removed.data["kind"], removed.data["state"]) == ("removal", "done")
    assert [r["bandwidth"] for m, r in world.asked if m == "remove_snapshot" and r["id"] == id] == [10 * 2**20]


def test_many_snapshots_are_planned_removed_and_retried(door: Door, world: World, vm: Row) -> None:
    flags = {"restorable": True, "partly_removed": False, "quiesced": False, "live": True, "state": "ok"}
    ids = [str(uuid.uuid4()) for _ in range(3)]
    for id in ids:
        world.put("snapshot", id=id, vm_id=vm["id"], disks=[], job_id=None, **flags)
    plan = door.command("snapshot", "remove", "--vm", vm["name"], "--dry-run")
    assert plan.code == 0, plan
    assert "COMES BACK" in plan.out
    wrong = door.command("snapshot", "remove", "--vm", vm["name"], "--expect", "2", "--yes")
    assert (wrong.code, "matches 3 snapshots; 2 were expected" in wrong.err) == (4, True)
    asked = door.command("snapshot", "remove", "--vm", vm["name"], "--older-than", "30d")
    assert (asked.code, "3 snapshot(s) keep cannot be returned to" in asked.err) == (2, True), asked
    removed = door.command("snapshot", "remove", *ids[:2], "--yes", "--bandwidth", "1M", "--no-wait", "--json")
    assert removed.data["snapshot_count"] == 2
    assert [r["bandwidth"] for m, r in world.asked if m == "remove_snapshots" and r["snapshots"] == ids[:2]] == [2**20]
    removal_id = removed.data["id"]
    assert door.command("removal", "show", removal_id, "--json").data["items"][0]["snapshot_id"] == ids[0]
    cancelled = door.command("removal", "cancel", removal_id, "--yes")
    assert (cancelled.code, "Cancelled by admin." in cancelled.out) == (0, True), cancelled
    assert door.command("removal", "retry", removal_id, "--dry-run", "--json").data["state"] == "planned"
    again = door.command("removal", "retry", removal_id, "--json")
    assert (again.code, again.data["snapshot_count"]) == (0, 2), again
    assert door.command("removal", "watch", again.data["id"]).code == 0


def test_one_disk_of_snapshots_is_named_by_its_alias(door: Door, world: World, vm: Row) -> None:
    flags = {"restorable": True, "partly_removed": False, "quiesced": False, "live": True, "state": "ok"}
    id, disk = str(uuid.uuid4()), vm["disks"][0]
    world.put("snapshot", id=id, vm_id=vm["id"], disks=[], job_id=None, **flags)
    assert door.command("snapshot", "remove", id, "--vm", vm["name"], "--disk", disk["alias"], "--dry-run").code == 0
    asked = [r["disk_snapshots"] for m, r in world.asked if m == "remove_snapshots"]
    assert asked[-1] == [{"snapshot_id": id, "disk_id": disk["id"]}]


def test_a_removal_that_names_nothing_or_two_ways_ends_with_2(door: Door) -> None:
    odd = ((), ("--older-than", "soon"), (str(uuid.uuid4()), "--text", "x"), ("--text", "x", "--disk", "data"))
    for words in odd:
        assert door.command("snapshot", "remove", *words, "--dry-run").code == 2


def test_an_empty_word_does_not_widen_what_is_removed(door: Door) -> None:
    for words, code in ((("--vm", ""), 3), (("--domain", "", "--text", "x"), 3), (("--text", ""), 4)):
        assert door.command("snapshot", "remove", *words, "--dry-run").code == code, words


def test_a_template_is_made_and_vms_from_it(door: Door, world: World, vm: Row) -> None:
    name = f"golden-{vm['id'][:8]}"
    running = door.command("template", "create", name, "--vm", vm["name"])
    assert (running.code, "is running" in running.err) == (4, True)
    door.command("vm", "power-off", vm["name"], "--yes")
    made = door.command("template", "create", name, "--vm", vm["name"], "--json")
    assert (made.data["state"], made.data["disks"][0]["state"]) == ("ok", "ok")
    assert f"{name}: 3.0 GiB of at most 3.0 GiB copied" in made.err
    assert vm["disks"][0]["alias"] in door.command("template", "show", name).out
    thin = door.command("vm", "create", f"{name}-web1", "--template", name, "--json").data
    assert (thin["memory"], thin["cluster_id"], thin["disks"][0]["origin"]) == (GIB, vm["cluster_id"], "thin")
    full = door.command(
        "vm", "create", f"{name}-web2", "--template", name, "--clone", "full", "-m", "2GiB", "--json"
    ).data
    assert (full["memory"], full["disks"][0]["origin"], full["disks"][0]["state"]) == (2 * GIB, "copy", "ok")
    begun = door.command("template", "create", f"{name}-2", "--vm", vm["name"], "--no-wait", "--json").data
    assert begun["state"] == "creating"
    asked = door.command("template", "delete", name)
    assert (asked.code, "will be deleted for good" in asked.err) == (2, True)
    assert door.command("template", "delete", name, "--yes").code == 0
    assert door.command("vm", "create", "web3", "--template", name).code == 3


def test_a_copy_that_fails_ends_with_7_and_says_what_helps(door: Door, world: World, vm: Row) -> None:
    door.command("vm", "power-off", vm["name"], "--yes")
    world.rows["vm"][vm["id"]]["disks"][0]["alias"] = "bad"
    failed = door.command("template", "create", f"bad-{vm['id'][:8]}", "--vm", vm["name"])
    assert (failed.code, "was not made: The storage is full." in failed.err, "--id" in failed.err) == (7, True, True)


def test_a_job_is_waited_for_and_its_end_is_the_exit_code(door: Door, vm: Row) -> None:
    for how, code, said in (("", 0, ""), ("fail", 7, "The storage is full."), ("stick", 8, "Free 4 GiB")):
        job = door.command("snapshot", "create", vm["name"], "-d", how, "--no-wait", "--json").data
        waited = door.command("job", "wait", job["id"])
        assert (waited.code, said in waited.err) == (code, True), waited


def test_a_job_that_takes_too_long_ends_with_9_and_goes_on(door: Door, world: World, vm: Row) -> None:
    job = door.command("snapshot", "create", vm["name"], "--no-wait", "--json").data
    slow = door.command("job", "wait", job["id"], "--timeout", "0.1")
    assert slow.code == 9
    assert "drystone job wait" in slow.err


def test_events_are_followed_as_json_lines(door: Door) -> None:
    ran = door.command("event", "follow", "--count", "1", "--after", "0123456789ab-1", "--json")
    assert ran.data["type"] == "gap"


def test_health_says_who_answers(door: Door) -> None:
    found = door.command("health", "--json")
    assert all(service["answers"] for service in found.data["services"])


def test_completion_is_offered(door: Door) -> None:
    ran = door.command("--show-completion", environ={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert "Traceback" not in ran.err


# -- bad input; docs/bad-input.md lists these -------------------------------------------------------------


def test_unknown_and_ambiguous_names_end_with_3(door: Door, world: World, vm: Row) -> None:
    unknown = door.command("vm", "show", "nobody")
    assert (unknown.code, "There is no vm 'nobody'." in unknown.err) == (3, True)
    missing = door.command("vm", "show", str(uuid.uuid4()))
    assert (missing.code, "drystone vm list" in missing.err) == (3, True)
    for _ in range(2):
        world.put("cluster", id=str(uuid.uuid4()), name=f"twin-{vm['id']}", data_center_id=vm["data_center_id"])
    twin = door.command("cluster", "show", f"twin-{vm['id']}")
    assert (twin.code, "2 objects" in twin.err) == (3, True)


def test_a_refusal_ends_with_4_and_says_what_helps(door: Door, vm: Row) -> None:
    refused = door.command("vm", "start", vm["name"])
    assert (refused.code, "start needs it down" in refused.err, "hint:" in refused.err) == (4, True, True)
    assert door.command("vm", "change", vm["name"], "--cpus", "0").code == 4


def test_errors_are_json_too(door: Door) -> None:
    ran = door.command("vm", "show", str(uuid.uuid4()), "--json")
    assert yaml.safe_load(ran.err)["code"] == "not_found"


def test_a_wrong_token_ends_with_5(door: Door) -> None:
    ran = run("vm", "list", environ={"DRYSTONE_ADDRESS": door.address, "DRYSTONE_TOKEN": "wrong"})
    assert (ran.code, "A valid token is needed." in ran.err) == (5, True)


@pytest.mark.parametrize(
    ("environ", "code", "said"),
    [
        ({}, 2, "No token was given."),
        ({"DRYSTONE_TOKEN": "a b"}, 2, "not one"),
        ({"DRYSTONE_TOKEN_FILE": "/nonexistent/x"}, 2, "cannot be read"),
        ({"DRYSTONE_TOKEN": "x", "DRYSTONE_ADDRESS": "ftp://x"}, 2, "is not one"),
        ({"DRYSTONE_TOKEN": "x", "DRYSTONE_ADDRESS": "http://127.0.0.1:9"}, 6, "does not answer"),
    ],
)
def test_wrong_settings_end_with_a_sentence(environ: dict[str, str], code: int, said: str) -> None:
    ran = run("vm", "list", environ=environ)
    assert (ran.code, said in ran.err, ran.out) == (code, True, ""), ran


def test_what_is_not_drystone_is_called_so(door: Door) -> None:
    ran = run("vm", "list", environ={"DRYSTONE_ADDRESS": f"{door.address}/healthz?", "DRYSTONE_TOKEN": door.token})
    assert (ran.code, "not Drystone's API" in ran.err) == (4, True), ran


@pytest.mark.parametrize(
    "words",
    [
        ("disk", "create", "d", "--domain", "x", "--size", "huge"),
        ("vm", "create", "v", "--cluster", "x", "--memory", "1GiB", "--nic", "eth0,colour=red"),
        ("vm", "create", "v", "--cluster", "x"),
        ("vm", "explode"),
        ("vm", "show"),
    ],
)
def test_wrong_use_ends_with_2(door: Door, words: tuple[str, ...]) -> None:
    if "--nic" in words:
        words = tuple(_any_cluster(door) if word == "x" else word for word in words)
    assert door.command(*words).code == 2


def _any_cluster(door: Door) -> str:
    return str(door.command("cluster", "list", "--json").data[0]["id"])


def test_settings_are_printed_without_secrets(door: Door) -> None:
    own = door.command("config", "show")
    assert door.address in own.out
    assert door.token not in own.out
    service = door.command("config", "show", "--service", "gateway", environ={"DRYSTONE_HTTP_PORT": "99"})
    assert "http_port = 99  (env DRYSTONE_HTTP_PORT)" in service.out
    wrong = door.command("config", "show", "--service", "gateway", environ={"DRYSTONE_HTTP_PORT": "many"})
    assert (wrong.code, "DRYSTONE_HTTP_PORT" in wrong.err) == (2, True)
