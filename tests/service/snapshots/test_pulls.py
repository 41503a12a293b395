"""Layers that hold far less than the active one are pulled up into it; to the user it reads like any other removal."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from contracts import errors, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB
from tests.fakes.process import Process
from tests.fakes.site import Site, new

EACH = ("before_ask", "after_ask", "after_settled")
POINTS = [f"merge.{step}.{at}" for step in ("plan", "commit", "record", "discard") for at in EACH]


def large(site: Site, vm: str, mib: int = 900) -> None:
    """The guest has written much since the last snapshot."""
    for disk in site.disk_ids(vm):
        site.volumes(disk)[site.chain(disk)[-1]].actual_size = mib * MIB


def taken(site: Site, vm: str, count: int) -> list[str]:
    found = [site.taken(vm, description=f"number {number}") for number in range(count)]
    large(site, vm)
    return found


@pytest.fixture
def running(start: Callable[..., Process]) -> Process:
    return start(pulls=True)


@pytest.fixture
def vm(site: Site, host: FakeAgent, running: Process) -> str:
    return site.vm(host, disks=1)


def the_merge(site: Site, removal: dict[str, Any]) -> dict[str, Any]:
    (merge,) = site.removal(removal["id"])["merges"]
    return dict(merge)


def test_a_small_layer_is_pulled_and_the_leaf_stays(
    site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path, pulls=True)
    vm = site.vm(host, disks=2)
    first, last = taken(site, vm, 2)
    before = [site.chain(disk) for disk in site.disk_ids(vm)]
    plan = site.call(snapshots.remove_snapshots, job_id=new(), snapshots=[last], dry_run=True)
    for merge in plan["merges"]:
        assert (merge["direction"], merge["kind"], merge["bytes_to_copy"]) == ("pull", "pull", 196_608)
        assert merge["space_needed"] == 196_608
        assert "Pulling copies 192.0 KiB, committing 900.0 MiB." in merge["why"]
    removal = site.remove_many([last])
    assert site.end_of(removal)["state"] == "done"
    assert [site.chain(disk) for disk in site.disk_ids(vm)] == [[one[0], one[2]] for one in before]
    assert (host.asked("start_commit"), host.asked("pivot"), host.asked("record_merge")) == ([], [], [])
    assert max(merge["bytes_merged"] for merge in site.merges(removal["id"])) <= 196_608
    told = site.removal(removal["id"])
    assert {merge["direction"] for merge in told["merges"]} == {"pull"}
    assert told["merges"][0]["why"] == plan["merges"][0]["why"]
    assert site.agrees(host, vm)
    assert [one["id"] for one in site.call(snapshots.list_snapshots, vm_id=vm)["items"]] == [first]


def test_a_whole_chain_goes_up_in_one_pull(site: Site, host: FakeAgent, vm: str) -> None:
    removal = site.remove_many(taken(site, vm, 3))
    assert site.end_of(removal)["state"] == "done"
    merge = the_merge(site, removal)
    assert (merge["direction"], merge["layers"]) == ("pull", 3)
    (disk,) = site.disk_ids(vm)
    (left,) = site.chain(disk)
    assert left == merge["top_id"]
    assert site.volumes(disk)[left].backing_id is None
    (discard,) = host.asked("discard_volume")
    assert [discard["volume_id"], *discard["below"]][-1] == merge["base_id"]
    assert site.agrees(host, vm)
    later = site.taken(vm)
    assert site.end_of(site.remove(later))["state"] == "done"
    assert site.agrees(host, vm)


def test_a_range_below_is_committed_and_then_the_rest_is_pulled_onto_it(site: Site, host: FakeAgent, vm: str) -> None:
    first, _, third = taken(site, vm, 3)
    removal = site.remove_many([first, third])
    assert site.end_of(removal, timeout=90)["state"] == "done"
    assert sorted(one["direction"] for one in site.removal(removal["id"])["merges"]) == ["commit", "pull"]
    assert site.agrees(host, vm)


def test_layers_that_no_pull_may_move_are_committed(site: Site, host: FakeAgent, vm: str) -> None:
    (last,) = taken(site, vm, 1)
    (disk,) = site.disk_ids(vm)
    site.volumes(disk)[site.chain(disk)[0]].pulls = False
    merge = the_merge(site, removal := site.remove_many([last]))
    assert (merge["direction"], merge["kind"]) == ("commit", "active")
    assert "dirty bitmaps" in merge["why"]
    assert site.end_of(removal)["state"] == "done"


def test_a_cancelled_pull_leaves_the_chain_as_it_was(site: Site, host: FakeAgent, vm: str) -> None:
    (last,) = taken(site, vm, 1)
    host.world.job_rate = 0
    removal = site.remove(last)
    site.until(lambda: bool(host.asked("start_pull")), "the copy")
    assert site.call(snapshots.get_snapshot, id=last)["restorable"] is False
    site.call(snapshots.cancel_job, id=removal["id"])
    assert site.end_of(removal)["state"] == "undone"
    left = site.call(snapshots.get_snapshot, id=last)
    assert (left["state"], left["restorable"]) == ("ok", True)
    assert site.agrees(host, vm)
    host.world.job_rate = 64 * MIB
    assert site.end_of(site.remove(last))["state"] == "done"


def test_a_vm_that_stops_within_a_pull_is_pulled_offline(site: Site, host: FakeAgent, vm: str) -> None:
    (last,) = taken(site, vm, 1)
    host.world.job_rate = 0
    removal = site.remove(last)
    site.until(lambda: bool(host.asked("start_pull")), "the copy")
    site.stop(host, vm)
    site.until(lambda: bool(host.asked("merge_offline")), "it to go on")
    merge = the_merge(site, removal)
    assert merge["direction"] == "pull"
    (asked,) = host.asked("merge_offline")
    assert asked["pull"]
    host.world.job_rate = 64 * MIB
    assert site.end_of(removal, timeout=90)["state"] == "done"
    assert site.agrees(host, vm)


def test_a_qemu_that_does_not_answer_is_not_taken_for_a_vm_that_is_down(
    site: Site, host: FakeAgent, vm: str, tmp_path: pathlib.Path
) -> None:
    """It falls silent between the look and the ask: neither the direction nor the way may turn by that."""
    (last,) = taken(site, vm, 1)
    point = tmp_path / "point"
    point.write_text("merge.commit.before_ask hold")
    held = site.restart(crash_file=point)
    removal = site.remove(last)
    site.until(lambda: point.with_suffix(".fired").exists(), "the ask")
    host.world.vms[vm].mute = True
    held.thaw()
    held.wait_for_log("monitor does not answer")
    assert (host.asked("merge_offline"), host.asked("start_pull"), host.asked("start_commit")) == ([], [], [])
    host.world.vms[vm].mute = False
    assert site.end_of(removal, timeout=90)["state"] == "done"
    assert (the_merge(site, removal)["direction"], host.asked("merge_offline")) == ("pull", [])
    assert site.agrees(host, vm)


def test_a_vm_that_stops_once_its_pull_is_recorded_commits_nothing(site: Site, host: FakeAgent, vm: str) -> None:
    (last,) = taken(site, vm, 1)
    (disk,) = site.disk_ids(vm)
    leaf = site.chain(disk)[-1]
    armed = site.restart(crash="merge.record.before_ask")
    removal = site.remove(last)
    assert armed.wait(60) == -9
    site.stop(host, vm)
    site.restart()
    assert site.end_of(removal, timeout=90)["state"] == "done"
    assert (host.asked("merge_offline"), site.chain(disk)) == ([], [leaf])
    assert site.agrees(host, vm)


def test_the_layers_of_a_vm_that_is_down_are_pulled_also_inside(site: Site, host: FakeAgent, vm: str) -> None:
    first, second = (site.taken(vm, description=text) for text in ("first", "second"))
    (disk,) = site.disk_ids(vm)
    chain = site.chain(disk)
    site.volumes(disk)[chain[1]].actual_size = 900 * MIB
    site.stop(host, vm)
    removal = site.remove(first)
    assert site.end_of(removal)["state"] == "done"
    merge = the_merge(site, removal)
    assert (merge["direction"], merge["kind"], site.chain(disk)) == ("pull", "pull", chain[1:])
    assert site.agrees(host, vm)
    large(site, vm)
    site.volumes(disk)[chain[1]].actual_size = MIB
    removal = site.remove(second)
    assert site.end_of(removal)["state"] == "done"
    assert (the_merge(site, removal)["direction"], site.chain(disk)) == ("pull", chain[2:])
    assert site.agrees(host, vm)
    site.start(host, vm)
    assert site.agrees(host, vm)


@pytest.mark.parametrize("inside", [False, True])
def test_a_vm_that_starts_before_its_pull_is_committed(site: Site, host: FakeAgent, vm: str, inside: bool) -> None:
    first, second = (site.taken(vm, description=text) for text in ("first", "second"))
    (disk,) = site.disk_ids(vm)
    site.volumes(disk)[site.chain(disk)[1 if inside else -1]].actual_size = 900 * MIB
    site.restart(pulls=False)
    site.stop(host, vm)
    host.world.storage.leases[vm] = 7  # somebody starts it, on another host perhaps
    removal = site.remove(first if inside else second)
    asked = site.until(lambda: host.asked("merge_offline"), "an ask")
    assert asked[0]["pull"]
    host.world.storage.leases[vm] = None
    site.start(host, vm)
    assert site.end_of(removal, timeout=90)["state"] == "done"
    merge = the_merge(site, removal)
    assert (merge["direction"], merge["kind"]) == ("commit", "internal" if inside else "active")
    assert "It was to be pulled, but now the VM runs" in merge["why"]
    assert site.agrees(host, vm)


def test_a_pull_that_would_touch_the_reserve_is_stopped(site: Site, host: FakeAgent, vm: str) -> None:
    (last,) = taken(site, vm, 1)
    host.world.job_rate = 1
    removal = site.remove(last)
    site.until(lambda: bool(host.asked("start_pull")), "the copy")
    with host.world.storage.lock:
        host.world.storage.domains[site.domain["id"]].free = 0
    ended = site.end_of(removal, timeout=90)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "no_space")
    assert site.agrees(host, vm)


@pytest.mark.parametrize("lost", ["start_pull", "record_pull"])
def test_an_ask_whose_answer_was_lost_is_not_done_twice(site: Site, host: FakeAgent, vm: str, lost: str) -> None:
    (last,) = taken(site, vm, 1)
    host.lose(lost)
    assert site.end_of(site.remove(last), timeout=90)["state"] == "done"
    assert site.agrees(host, vm)


@pytest.mark.chaos
@pytest.mark.parametrize("point", POINTS)
def test_a_pull_survives(site: Site, host: FakeAgent, vm: str, point: str) -> None:
    first, last = taken(site, vm, 2)
    armed = site.restart(crash=point)
    ask = {"id": last, "job_id": new()}
    with contextlib.suppress(errors.NoAnswer, errors.ServiceAway):
        site.bus.call(snapshots.remove_snapshot, ask, deadline=3.0)
    assert armed.wait(60) == -9
    site.restart()
    removal = site.remove(last, job_id=ask["job_id"])
    assert site.end_of(removal)["state"] == "done"
    assert the_merge(site, removal)["direction"] == "pull"
    assert [one["id"] for one in site.call(snapshots.list_snapshots, vm_id=vm)["items"]] == [first]
    assert site.agrees(host, vm)
