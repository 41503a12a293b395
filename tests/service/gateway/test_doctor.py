"""The doctor over HTTP and on the command line."""

from __future__ import annotations

import json
import uuid

import httpx

from tests.service.gateway.door import Door
from tests.service.gateway.world import Row, World


def sick(world: World, vm: Row, code: str = "snapshot_lost") -> str:
    disk = str(vm["disks"][0]["id"])
    world.doctor.falls_ill(disk, code)
    return disk


def test_a_healthy_disk_ends_the_command_with_0(door: Door, vm: Row) -> None:
    ran = door.command("doctor", "disk", vm["disks"][0]["alias"])
    assert (ran.code, "All sides agree." in ran.out) == (0, True), ran
    assert [word for word in ran.out.split() if word.isupper()][1:5] == ["QEMU", "STORAGE", "LIBVIRT", "DATABASE"]


def test_a_difference_ends_it_with_10_and_says_what_helps(door: Door, world: World, vm: Row) -> None:
    disk = sick(world, vm)
    ran = door.command("doctor", "disk", disk)
    assert ran.code == 10
    assert "snapshot_lost: Snapshot 'before' names a volume that is gone." in ran.out
    assert f"drystone doctor disk {disk} --repair" in ran.out
    assert "Database: snapshot 'before' is forgotten." in ran.out
    as_json = door.command("doctor", "disk", disk, "--json")
    assert (as_json.code, json.loads(as_json.out)["differences"][0]["code"]) == (10, "snapshot_lost")


def test_a_repair_asks_first_and_sends_what_was_seen(door: Door, world: World, vm: Row) -> None:
    disk = sick(world, vm)
    refused = door.command("doctor", "disk", disk, "--repair")
    assert (refused.code, "snapshot 'before' is forgotten" in refused.err) == (2, True)
    done = door.command("doctor", "disk", disk, "--repair", "--yes", "--json")
    assert done.data["differences"] == []
    assert [r["expect"] for m, r in world.asked if m == "repair_disk" and r["disk_id"] == disk] == ["digest-1"]
    again = door.command("doctor", "disk", disk, "--repair")
    assert (again.code, "There was nothing to repair." in again.err) == (0, True)


def test_a_repair_that_cannot_be_is_refused_with_4(door: Door, world: World, vm: Row) -> None:
    ran = door.command("doctor", "disk", sick(world, vm, "busy"), "--repair", "--yes")
    assert (ran.code, "drystone job cancel job-1" in ran.err) == (4, True), ran


def test_volumes_are_named_for_a_repair_only(door: Door, vm: Row) -> None:
    for option in ("--adopt", "--discard"):
        ran = door.command("doctor", "disk", vm["disks"][0]["id"], option, str(uuid.uuid4()))
        assert (ran.code, "go with --repair" in ran.err) == (2, True), ran


def test_a_stale_diagnosis_is_a_conflict(http: httpx.Client, world: World, vm: Row) -> None:
    path = f"/disks/{sick(world, vm)}/doctor"
    assert http.get(path).json()["digest"] == "digest-1"
    stale = http.post(f"{path}/repair", json={"expect": "old"})
    assert (stale.status_code, stale.json()["code"]) == (409, "diagnosis_changed")
    assert "drystone doctor disk" in stale.json()["hint"]
    assert http.post(f"{path}/repair", json={"expect": "digest-1"}).json()["diagnosis"]["differences"] == []


def test_a_domain_is_shown_over_all_its_pages(door: Door, world: World, vm: Row) -> None:
    first = vm["disks"][0]
    more = [world.put("disk", **{**first, "id": str(uuid.uuid4()), "alias": f"more-{n}"}) for n in range(2)]
    domain = str(first["domain_id"])
    healthy = door.command("doctor", "domain", domain)
    assert (healthy.code, "All sides agree about every disk." in healthy.out) == (0, True), healthy
    world.doctor.falls_ill(more[1]["id"])
    ran = door.command("doctor", "domain", domain, "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["looked_at"], found["next"]) == (10, 3, None)
    assert [row["alias"] for row in found["items"]] == ["more-1"]
    assert "names a volume that is gone" in door.command("doctor", "domain", domain).out
