"""Removals during which something dies, and the model that says whether anything was lost.

Whatever died, and wherever: the removal ends done or undone with a reason, the guest's acknowledged blocks read back,
the VM starts, nothing is left behind on the storage, and a second request finds the state.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from client.errors import ApiError, Unreachable
from deploy.stack import wait
from deploy.world import Machine, World

MIB = 2**20
Job = Callable[[], Mapping[str, Any]]
ENDED = ("done", "undone", "stuck")
WHENS = ("before_ask", "after_ask", "after_settled")


def end_of(vm: Machine, job_id: str, seconds: float = 120) -> dict[str, Any]:
    """The job as it ended; services that are away meanwhile are waited for."""

    def look() -> dict[str, Any] | None:
        try:
            job = dict(vm.api.jobs.get(job_id))
        except (ApiError, Unreachable):
            return None
        return job if job["state"] in ENDED else None

    return wait.until(f"the end of job {job_id}", look, seconds, every=0.1)


def remove_while_copying(vm: Machine, snapshot_id: str, hurt: Callable[[], None]) -> dict[str, Any]:
    """Ask for a removal so slow that it cannot end by itself, hurt something, then let it run free."""
    vm.wait_for_writes(1024)
    job = vm.api.remove_snapshot(snapshot_id, bandwidth=MIB)
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
    hurt()
    wait.until("the limit to be lifted", lambda: _lifted(vm, job["id"]), 120)
    return end_of(vm, job["id"])


def _lifted(vm: Machine, job_id: str) -> bool:
    """Or the job has ended, and there is nothing to limit."""
    try:
        vm.api.limit_job(job_id, 0)
    except (ApiError, Unreachable):
        with contextlib.suppress(ApiError, Unreachable):
            return vm.api.jobs.get(job_id)["state"] in ENDED
        return False
    return True


def remove_and_hurt_after_ask(
    world: World, vm: Machine, snapshot_id: str, hurt: Callable[[], None], delay: float = 0.0
) -> tuple[dict[str, Any], bool]:
    """Ask for a removal; so many seconds after the agent asked libvirt for the pivot, hurt something. Answers the end,
    and whether the guest stood still yet when it was hurt: then nothing of the pivot was over."""
    agent = world.stack.agents["h1"]
    journal = agent.folder / "journal.json"
    agent.crash_at("pivot.after_ask pass")
    job = vm.api.remove_snapshot(snapshot_id)
    wait.until("the ask for the pivot", agent.crashed, 60, every=0.0002)
    asked = time.monotonic()
    time.sleep(delay)
    amidst = vm.id in json.loads(journal.read_text())["pauses"]
    late = time.monotonic() - asked
    hurt()
    ended = end_of(vm, job["id"])
    agent.forget_crash()
    print(
        f"\nhurt {late * 1000:.1f} ms after the ask was seen, {'in' if amidst else 'after'} the pause: {ended['state']}"
    )
    return ended, amidst


def remove_with_crash(
    world: World, vm: Machine, snapshot_id: str, part: str, point: str, *, also: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Let `part` kill itself at a crash point of this removal, hurt something else too, and start the part again."""
    return with_crash(world, vm, part, point, lambda: vm.api.remove_snapshot(snapshot_id), also=also)


def snapshot_with_crash(world: World, vm: Machine, part: str, point: str) -> dict[str, Any]:
    """Let `part` kill itself at a crash point of a new snapshot."""
    return with_crash(world, vm, part, point, lambda: vm.api.create_snapshot(vm.id, {"description": point}))


def with_crash(
    world: World, vm: Machine, part: str, point: str, ask: Job, *, also: Callable[[], None] | None = None
) -> dict[str, Any]:
    """The same for any job that `ask` begins."""
    process = world.stack.process(part)
    process.crash_at(point)
    job = ask()
    wait.until(f"{part} to die at {point}", process.crashed, 60, every=0.02)
    if part.endswith(".agent"):
        process.kill()  # its child died at the point; now all of it
    wait.until(f"the end of {part}", lambda: not process.alive(), 10)
    if also is not None:
        also()
    began = time.monotonic()
    process.start()
    ready = time.monotonic()
    ended = end_of(vm, job["id"])
    print(f"\n{point}: ready after {ready - began:.1f} s, {ended['state']} {time.monotonic() - ready:.1f} s later")
    return ended


def assert_whole(vm: Machine, *, snapshots: int) -> None:
    """The guest goes on writing, every acknowledged block reads back, no file is left behind, and the VM starts."""
    if vm.state() == "running":
        vm.wait_for_writes(64)
        vm.power_off()
    for disk in range(len(vm.disks)):
        result = vm.check(disk)
        assert result.ok, result.summary()
        assert vm.files(disk) == {volume["volume_id"] for volume in vm.chain(disk)}
        assert len(vm.chain(disk)) == snapshots + 1
    assert len(list(vm.api.snapshots.all(vm_id=vm.id))) == snapshots
    vm.start()
    assert vm.acks().findings() == []


def assert_undone_and_repeat(vm: Machine, ended: dict[str, Any], snapshot_id: str) -> None:
    """If the removal did not come to its end it says why, and asking once more finishes it."""
    if ended["state"] == "done":
        return
    assert ended["state"] == "undone", ended
    assert ended["reason"]["message"]
    if vm.state() != "running":
        wait.until("the VM to be down", lambda: vm.state() == "down", 60)
        vm.start()
    assert vm.remove(snapshot_id)["state"] == "done"
