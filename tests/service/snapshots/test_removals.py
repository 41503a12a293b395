"""Removals of many: one request, one plan, one job for a range, and each part with its own result."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from contracts import errors, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB, Volume
from tests.fakes.process import Process
from tests.fakes.site import Site, new

Start = Callable[..., Process]


def _left(site: Site, vm: str) -> list[str]:
    listed = site.call(snapshots.list_snapshots, vm_id=vm, limit=1000)
    return [one["id"] for one in listed["items"]]


def _commits(host: FakeAgent) -> list[str]:
    """The tops that were taken down, in their order. (The end of an internal merge is recorded by asking once more.)"""
    return list(dict.fromkeys(ask["top_id"] for ask in host.asked("start_commit")))


def _states(removal: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(item["snapshot_id"], item["disk_id"]): item["state"] for item in removal["items"]}


def test_six_of_eight_snapshots_go_in_one_request(
    site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path)
    vm = site.vm(host, disks=2)
    taken = [site.taken(vm, description=f"number {number}") for number in range(8)]
    kept = [taken[2], taken[5]]
    removal = site.remove_many([one for one in taken if one not in kept])
    assert (removal["snapshot_count"], removal["description"]) == (6, "Remove 6 snapshots")
    ended = site.end_of(removal, timeout=90)
    assert (ended["state"], ended["kind"]) == ("done", "removal")
    told = site.removal(removal["id"])
    assert set(_states(told).values()) == {"done"}
    assert len(told["items"]) == 12
    assert [merge["layers"] for merge in told["merges"]] == [2] * 6
    assert len(_commits(host)) == len(host.asked("discard_volume")) == 6
    assert all(len(ask["below"]) == 1 for ask in host.asked("discard_volume"))
    assert _left(site, vm) == kept
    assert site.agrees(host, vm)
    assert site.end_of(site.remove_many(kept))["state"] == "done"
    assert [len(site.chain(disk)) for disk in site.disk_ids(vm)] == [1, 1]
    assert site.agrees(host, vm)


def test_all_merges_of_a_snapshot_may_end_at_the_same_moment(
    site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path, merges_per_host=8, merges_per_domain=8)
    vm = site.vm(host, disks=8)
    taken = [site.taken(vm), site.taken(vm)]
    for one in taken:
        host.world.job_rate = 0
        removal = site.remove(one)
        site.until(lambda: len(host.world.vms[vm].jobs) == 8, "eight copies")
        host.world.job_rate = 64 * MIB
        assert site.end_of(removal)["state"] == "done"
    assert _left(site, vm) == []
    assert site.agrees(host, vm)


@pytest.mark.usefixtures("running")
def test_a_dry_run_shows_the_plan_and_changes_nothing(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    first, second, third = (site.taken(vm) for _ in range(3))
    before = site.call(snapshots.list_snapshots, vm_id=vm)
    plan = site.remove_many([third, first], dry_run=True)
    assert plan["state"] == "planned"
    assert [merge["snapshot_ids"] for merge in plan["merges"]] == [[first], [third]]
    assert [(merge["position"], merge["kind"]) for merge in plan["merges"]] == [(1, "internal"), (2, "active")]
    assert {merge["direction"] for merge in plan["merges"]} == {"commit"}
    assert [item["snapshot_id"] for item in plan["items"]] == [third, first]
    (domain,) = plan["domains"]
    assert (domain["merges"], domain["bytes_to_copy"]) == (2, 2 * 196_608)
    assert domain["space_needed"] == 196_608  # one after the other, on one disk
    assert site.call(snapshots.list_snapshots, vm_id=vm) == before
    assert host.asked("start_commit") == []
    with pytest.raises(errors.NotFound):
        site.removal(plan["id"])
    assert site.end_of(site.remove_many([first, second, third], job_id=plan["id"]))["state"] == "done"


@pytest.mark.usefixtures("running")
def test_a_snapshot_of_which_one_disk_went_stays_with_the_rest_and_says_so(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    one, other = site.disk_ids(vm)
    removal = site.remove_many(disk_snapshots=[{"snapshot_id": snapshot, "disk_id": one}])
    assert site.end_of(removal)["state"] == "done"
    left = site.call(snapshots.get_snapshot, id=snapshot)
    assert [disk["disk_id"] for disk in left["disks"]] == [other]
    assert (left["state"], left["partly_removed"], left["restorable"]) == ("ok", True, False)
    with pytest.raises(errors.NotFound, match="disk of snapshot"):
        site.remove_many(disk_snapshots=[{"snapshot_id": snapshot, "disk_id": one}])
    assert site.end_of(site.remove_many([snapshot]))["state"] == "done"
    assert site.agrees(host, vm)


@pytest.mark.usefixtures("running")
def test_what_is_refused_drags_nothing_down_and_is_retried(site: Site, host: FakeAgent) -> None:
    vms = [site.vm(host) for _ in range(3)]
    taken = [site.taken(vm) for vm in vms]
    site.vms[vms[1]]["state"] = "shutting_down"
    removal = site.remove_many(taken)
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"], ended["result"]["refused"]) == ("undone", "vm_wrong_state", 1)
    told = site.removal(removal["id"])
    assert [item["state"] for item in told["items"]] == ["done", "refused", "done"]
    assert told["items"][1]["reason"]["code"] == "vm_wrong_state"
    left = site.call(snapshots.get_snapshot, id=taken[1])
    assert (left["state"], left["restorable"]) == ("ok", True)
    with pytest.raises(errors.VmWrongState):
        site.retry(removal["id"])
    site.vms[vms[1]]["state"] = "running"
    again = site.retry(removal["id"])
    assert [item["snapshot_id"] for item in again["items"]] == [taken[1]]
    assert site.end_of(again)["state"] == "done"
    with pytest.raises(errors.NothingToRemove):
        site.retry(removal["id"])


@pytest.mark.usefixtures("running")
def test_a_snapshot_of_which_one_disk_is_refused_is_kept_whole_unless_its_disks_are_named(
    site: Site, host: FakeAgent
) -> None:
    vm = site.vm(host, disks=2)
    older, newer = (site.taken(vm) for _ in range(2))
    one, other = site.disk_ids(vm)
    above, left_behind = site.chain(other)[1], new()
    stands_on = Volume(left_behind, above, above, "cow", MIB, legality="illegal")
    host.world.storage.image(other).volumes[left_behind] = stands_on
    with pytest.raises(errors.VolumeInUse):
        site.remove_many([older, newer])
    both = [{"snapshot_id": older, "disk_id": disk_id} for disk_id in (one, other)]
    removal = site.remove_many(disk_snapshots=both)
    assert [item["state"] for item in removal["items"]] == ["running", "refused"]
    assert site.end_of(removal)["state"] == "undone"
    left = site.call(snapshots.get_snapshot, id=older)
    assert (left["partly_removed"], [disk["disk_id"] for disk in left["disks"]]) == (True, [other])


@pytest.mark.usefixtures("running")
def test_a_merge_that_fails_drags_nothing_down_and_is_retried(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    first, kept, third = (site.taken(vm) for _ in range(3))
    host.fail("start_commit", errors.HypervisorRefused(host_id=host.host_id, action="blockCommit", reason="no"))
    removal = site.remove_many([first, third])
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "hypervisor_refused")
    told = site.removal(removal["id"])
    assert [item["state"] for item in told["items"]] == ["undone", "done"]
    assert _left(site, vm) == [first, kept]
    assert site.call(snapshots.get_snapshot, id=first)["state"] == "ok"
    assert site.agrees(host, vm)
    assert site.end_of(site.retry(removal["id"]))["state"] == "done"
    assert _left(site, vm) == [kept]
    assert site.agrees(host, vm)


@pytest.mark.usefixtures("running")
def test_merges_of_one_chain_follow_each_other(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    first, _kept, third = (site.taken(vm) for _ in range(3))
    host.world.job_rate = 0
    removal = site.remove_many([first, third])
    site.until(lambda: host.asked("start_commit"), "the first copy")
    told = site.removal(removal["id"])
    assert [merge["step"] for merge in told["merges"]] == ["commit", "waiting"]
    with pytest.raises(errors.FlowWrongState):
        site.retry(removal["id"])
    host.world.job_rate = 64 * MIB
    assert site.end_of(removal)["state"] == "done"
    assert _commits(host) == [merge["top_id"] for merge in told["merges"]]
    assert site.agrees(host, vm)


def test_the_rest_is_cancelled_and_what_is_done_stays_done(site: Site, host: FakeAgent, start: Start) -> None:
    start(merges_per_host=1)
    vms = [site.vm(host) for _ in range(3)]
    taken = [site.taken(vm) for vm in vms]
    removal = site.remove_many(taken[:1])
    assert site.end_of(removal)["state"] == "done"
    with pytest.raises(errors.TooLate):
        site.call(snapshots.cancel_removal, id=removal["id"])
    host.world.job_rate = 0
    removal = site.remove_many(taken[1:])
    site.until(lambda: len(host.asked("start_commit")) == 2, "the copy of one")
    told = site.call(snapshots.cancel_removal, id=removal["id"])
    assert sorted(merge["step"] for merge in told["merges"]) == ["commit", "waiting"]
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "cancelled")
    assert {item["state"] for item in site.removal(removal["id"])["items"]} == {"undone"}
    assert all(site.call(snapshots.get_snapshot, id=one)["state"] == "ok" for one in taken[1:])
    assert len(host.asked("start_commit")) == 2
    host.world.job_rate = 64 * MIB
    assert site.end_of(site.retry(removal["id"]))["state"] == "done"
    assert all(site.agrees(host, vm) for vm in vms)


def test_what_is_done_stays_done_when_the_rest_of_it_is_cancelled(site: Site, host: FakeAgent, start: Start) -> None:
    start(merges_per_host=1)
    slow = site.host()
    slow.world.job_rate = 0
    vms = [site.vm(host), site.vm(slow), site.vm(slow)]
    taken = [site.taken(vm) for vm in vms]
    removal = site.remove_many(taken)
    site.until(lambda: site.removal(removal["id"])["items"][0]["state"] == "done", "the first")
    site.until(lambda: slow.asked("start_commit"), "the copy of another one")
    site.call(snapshots.cancel_removal, id=removal["id"])
    ended = site.end_of(removal)
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "cancelled")
    assert [item["state"] for item in site.removal(removal["id"])["items"]] == ["done", "undone", "undone"]
    assert [_left(site, vm) for vm in vms] == [[], taken[1:2], taken[2:]]
    assert len(slow.asked("start_commit")) == 1
    slow.world.job_rate = 64 * MIB
    again = site.retry(removal["id"])
    assert [item["snapshot_id"] for item in again["items"]] == taken[1:]
    assert site.end_of(again)["state"] == "done"
    assert all(site.agrees(agent, vm) for agent, vm in zip((host, slow, slow), vms, strict=True))


def test_merges_on_one_domain_wait_for_each_other_on_all_hosts(site: Site, host: FakeAgent, start: Start) -> None:
    start(merges_per_host=4, merges_per_domain=1)
    agents = [host, site.host()]
    vms = [site.vm(agent) for agent in agents]
    taken = [site.taken(vm) for vm in vms]
    for agent in agents:
        agent.world.job_rate = 0
    removal = site.remove_many(taken)
    site.until(lambda: any(agent.asked("start_commit") for agent in agents), "a copy")
    assert sorted(merge["step"] for merge in site.removal(removal["id"])["merges"]) == ["commit", "waiting"]
    for agent in agents:
        agent.world.job_rate = 64 * MIB
    assert site.end_of(removal)["state"] == "done"
    assert all(site.agrees(agent, vm) for agent, vm in zip(agents, vms, strict=True))


def test_a_merge_waits_for_the_space_of_others(site: Site, host: FakeAgent, start: Start) -> None:
    start()
    vms = [site.vm(host) for _ in range(2)]
    taken = [site.taken(vm) for vm in vms]
    for vm in vms:
        top = site.chain(site.disk_ids(vm)[0])[-1]
        host.world.storage.volume(site.disk_ids(vm)[0], top).actual_size = 100 * MIB
    host.world.storage.domains[site.domain["id"]].free = 1024 * MIB + 150 * MIB
    host.world.job_rate = 0
    removal = site.remove_many(taken)
    assert removal["domains"][0]["space_needed"] == 200 * MIB
    site.until(lambda: "looks again: merging needs" in site.process.log, "one waits")
    site.until(lambda: host.asked("start_commit"), "the other one to copy")
    assert len(host.asked("start_commit")) == 1
    host.world.job_rate = 64 * MIB
    assert site.end_of(removal, timeout=60)["state"] == "done"
    assert all(site.agrees(host, vm) for vm in vms)


@pytest.mark.usefixtures("running")
def test_a_removal_of_many_is_asked_for_twice_and_done_once(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    taken = [site.taken(vm) for _ in range(2)]
    ask = {"job_id": new(), "snapshots": taken}
    first = site.call(snapshots.remove_snapshots, **ask)
    assert site.call(snapshots.remove_snapshots, **ask)["id"] == first["id"]
    with pytest.raises(errors.IdempotencyConflict):
        site.call(snapshots.remove_snapshots, **ask, bandwidth=5)
    assert site.end_of(first)["state"] == "done"
    assert site.call(snapshots.remove_snapshots, **ask)["state"] == "done"
    assert len(host.asked("start_commit")) == 1


@pytest.mark.usefixtures("running")
def test_what_makes_no_sense_is_refused_before_anything_begins(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    snapshot = site.taken(vm)
    for bad in ({}, {"snapshots": [snapshot], "filter": {"vm_id": vm}}, {"filter": {}, "expected_count": 1}):
        with pytest.raises(errors.BadRequest):
            site.remove_many(bad.pop("snapshots", None), **bad)  # type: ignore[arg-type]
    with pytest.raises(errors.NothingToRemove):
        site.remove_many([])
    with pytest.raises(errors.NotFound, match="snapshot"):
        site.remove_many([snapshot, new()])
    for promise in (snapshots.get_removal, snapshots.cancel_removal):
        with pytest.raises(errors.NotFound):
            site.call(promise, id=new())
    job = site.call(snapshots.list_jobs, vm_id=vm)["items"][0]
    with pytest.raises(errors.NotFound, match="removal"):
        site.removal(job["id"])
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    with pytest.raises(errors.DiskBusy):
        site.remove_many([snapshot])
    host.world.job_rate = 64 * MIB
    site.end_of(removal)
    assert site.agrees(host, vm)


def test_there_is_a_limit_to_what_is_looked_at_in_one_request(site: Site, host: FakeAgent, start: Start) -> None:
    start(disks_per_removal=1)
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    with pytest.raises(errors.LimitExceeded):
        site.remove_many([snapshot])


def test_a_service_killed_in_the_middle_has_every_result_right(
    site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path
) -> None:
    site.service(url, tmp_path, merges_per_host=1)
    vms = [site.vm(host) for _ in range(3)]
    taken = [[site.taken(vm) for _ in range(2)] for vm in vms]
    site.restart(crash="merge.record.after_ask")
    armed = site.process
    assert armed is not None
    removal_id = new()
    site.bus.call(
        snapshots.remove_snapshots, {"job_id": removal_id, "snapshots": [one for own in taken for one in own]}
    )
    assert armed.wait(30) == -9
    site.restart()
    ended = site.end_of({"id": removal_id}, timeout=90)
    assert ended["state"] == "done"
    assert set(_states(site.removal(removal_id)).values()) == {"done"}
    assert all(site.agrees(host, vm) and _left(site, vm) == [] for vm in vms)
    assert len(_commits(host)) == 3


@pytest.mark.chaos
@pytest.mark.usefixtures("running")
def test_a_hundred_snapshots_of_twenty_vms_are_one_request(site: Site, host: FakeAgent) -> None:
    vms = [site.vm(host) for _ in range(20)]
    taken = []
    for _ in range(5):
        jobs = [site.take(vm) for vm in vms]
        taken += [site.end_of(job, timeout=90)["snapshot_id"] for job in jobs]
    removal = site.remove_many(taken)
    assert (removal["snapshot_count"], len(removal["merges"])) == (100, 20)
    assert removal["description"] == "Remove 100 snapshots of 20 VMs"
    assert site.end_of(removal, timeout=200)["state"] == "done"
    assert len(_commits(host)) == 20
    assert all(site.agrees(host, vm) and _left(site, vm) == [] for vm in vms)


@pytest.mark.usefixtures("running")
def test_a_removal_whose_next_merge_waits_for_a_stuck_one_is_stuck(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    first, _, third = (site.taken(vm) for _ in range(3))
    host.fail("discard_volume", errors.VolumeInUse(volume_id=new(), by="a backup"), times=8)
    removal = site.remove_many([first, third])
    stuck = site.end_of(removal, "stuck")
    assert "drystone job resume" in stuck["action"]
    (merge,) = [one for one in site.merges(removal["id"]) if one["state"] == "stuck"]
    site.call(snapshots.resume_job, id=merge["id"])
    assert site.end_of(removal)["state"] == "done"
    assert site.agrees(host, vm)
