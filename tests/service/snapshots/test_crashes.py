"""The service is killed with SIGKILL at every crash point of its flows and started again: the same end each time.

`make test` walks the points of one active merge and one create; other shapes at the same points are of `make chaos`.
"""

from __future__ import annotations

import contextlib
import pathlib

import pytest

from contracts import errors, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.process import Process
from tests.fakes.site import Site, new

EACH = ("before_ask", "after_ask", "after_settled")
BACK = ("before_undo", "after_undo")
MERGE = [f"merge.{step}.{at}" for step in ("plan", "commit", "pivot", "record", "discard") for at in EACH]
MERGE.append("merge.extend.after_settled")
INTERNAL = [point for point in MERGE if "pivot" not in point or "settled" in point]
CREATE = [f"snapshot.{step}.{at}" for step in ("plan", "switch", "record") for at in EACH]


@pytest.fixture
def vm(site: Site, host: FakeAgent, running: Process) -> str:
    return site.vm(host, disks=2)


def _arm(site: Site, point: str) -> Process:
    return site.restart(crash=point)


def _ask_and_die(site: Site, armed: Process, promise: object, **request: object) -> None:
    """The answer may or may not leave before the kill; asking again with the same ids is safe."""
    with contextlib.suppress(errors.NoAnswer, errors.ServiceAway):
        site.bus.call(promise, request, deadline=3.0)  # type: ignore[arg-type]
    assert armed.wait(60) == -9


@pytest.mark.parametrize("point", MERGE)
def test_an_active_merge_survives(site: Site, host: FakeAgent, vm: str, point: str) -> None:
    snapshot = site.taken(vm)
    _removed_with_a_crash(site, host, vm, snapshot, point)


@pytest.mark.chaos
@pytest.mark.parametrize("point", INTERNAL)
def test_an_internal_merge_survives(site: Site, host: FakeAgent, vm: str, point: str) -> None:
    snapshot = site.taken(vm)
    site.taken(vm)
    _removed_with_a_crash(site, host, vm, snapshot, point)


@pytest.mark.chaos
@pytest.mark.parametrize("point", MERGE)
def test_two_ranges_of_one_chain_survive(site: Site, host: FakeAgent, vm: str, point: str) -> None:
    taken = [site.taken(vm) for _ in range(5)]
    ask = {"job_id": new(), "snapshots": [*taken[:2], *taken[3:]]}
    _ask_and_die(site, _arm(site, point), snapshots.remove_snapshots, **ask)
    site.restart()
    removal = site.call(snapshots.remove_snapshots, **ask)
    assert site.end_of(removal, timeout=90)["state"] == "done"
    assert {item["state"] for item in site.removal(removal["id"])["items"]} == {"done"}
    assert [one["id"] for one in site.call(snapshots.list_snapshots, vm_id=vm)["items"]] == [taken[2]]
    assert site.agrees(host, vm)


def _removed_with_a_crash(site: Site, host: FakeAgent, vm: str, snapshot: str, point: str) -> None:
    ask = {"id": snapshot, "job_id": new()}
    _ask_and_die(site, _arm(site, point), snapshots.remove_snapshot, **ask)
    site.restart()
    assert site.end_of(site.remove(**{**ask, "snapshot_id": ask.pop("id")}))["state"] == "done"
    with pytest.raises(errors.NotFound):
        site.call(snapshots.get_snapshot, id=snapshot)
    assert site.agrees(host, vm)


@pytest.mark.parametrize("point", CREATE)
def test_a_create_survives(site: Site, host: FakeAgent, vm: str, point: str) -> None:
    ask = {"id": new(), "job_id": new(), "vm_id": vm}
    _ask_and_die(site, _arm(site, point), snapshots.create_snapshot, **ask)
    site.restart()
    assert site.end_of(site.call(snapshots.create_snapshot, **ask))["state"] == "done"
    assert site.agrees(host, vm)
    assert [len(site.chain(disk)) for disk in site.disk_ids(vm)] == [2, 2]


@pytest.mark.parametrize("point", [f"merge.{step}.{at}" for step in ("pivot", "commit") for at in BACK])
def test_a_merge_that_turns_back_survives(site: Site, host: FakeAgent, vm: str, point: str) -> None:
    ask = {"id": site.taken(vm), "job_id": new()}
    armed = _arm(site, point)
    host.fail("pivot", errors.PivotFailed(disk_id=new(), tries=1, reason="no"), times=99)
    _ask_and_die(site, armed, snapshots.remove_snapshot, **ask)
    site.restart()
    assert site.end_of({"id": ask["job_id"], "kind": "removal"})["state"] == "undone"
    assert site.agrees(host, vm)


@pytest.mark.parametrize("point", [f"snapshot.switch.{at}" for at in BACK])
def test_a_create_that_turns_back_survives(site: Site, host: FakeAgent, vm: str, point: str) -> None:
    ask = {"id": new(), "job_id": new(), "vm_id": vm, "quiesce": "required"}
    armed = _arm(site, point)
    host.fail("switch_leaves", errors.QuiesceFailed(vm_id=vm, reason="no agent"), times=99)
    _ask_and_die(site, armed, snapshots.create_snapshot, **ask)
    site.restart()
    assert site.end_of({"id": ask["job_id"], "kind": "snapshot"})["state"] == "undone"
    assert site.agrees(host, vm)
    assert [len(site.chain(disk)) for disk in site.disk_ids(vm)] == [1, 1]


def test_another_instance_goes_on_where_one_was_killed(
    site: Site, host: FakeAgent, url: str, tmp_path: pathlib.Path
) -> None:
    first = site.service(url, tmp_path / "a")
    vm = site.vm(host, disks=2)
    snapshot = site.taken(vm)
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    site.until(lambda: len(host.asked("start_commit")) == 2, "both copies")
    site.service(url, tmp_path / "b")
    first.kill()
    host.world.job_rate = 64 * 2**20
    assert site.end_of(removal)["state"] == "done"
    assert len(host.asked("start_commit")) == 2
    assert site.agrees(host, vm)


def test_an_ask_whose_answer_was_lost_is_not_done_twice(site: Site, host: FakeAgent, vm: str) -> None:
    snapshot = site.taken(vm)
    host.lose("record_merge")
    assert site.end_of(site.remove(snapshot), timeout=90)["state"] == "done"
    assert site.agrees(host, vm)
