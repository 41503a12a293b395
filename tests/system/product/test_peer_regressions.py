"""What hurt users of other systems, by number, on the whole product with writing guests. docs/peers.md lists all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.errors import ApiError
from deploy.stack import wait
from deploy.world import Machine, World
from tests.system.product import deaths, spoil
from tests.system.product.spoil import MIB, refused

pytestmark = pytest.mark.lab
VmOf = Callable[..., Machine]


@contextlib.contextmanager
def opened(volume: Path) -> Iterator[None]:
    """A backup tool has the volume open for reading, image lock and all."""
    words = ["qemu-io", "-r", "-f", "qcow2", str(volume)]
    reader = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write("length\n")
    reader.stdin.flush()
    assert reader.stdout.readline()  # it answered: it is open
    try:
        yield
    finally:
        reader.stdin.close()
        reader.wait(20)
        reader.stdout.close()


@contextlib.contextmanager
def removal_stuck(vm: Machine, snapshot: str, top: Path) -> Iterator[dict[str, Any]]:
    """A clone of top is made while the copy runs, and is still there when top is to go; the job as it stands then."""
    vm.wait_for_writes(512)
    job = vm.api.remove_snapshot(snapshot, bandwidth=256 * 1024)
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
    clone = top.with_name("clone.qcow2")
    spoil.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", top.name, "-F", "qcow2", clone, 256 * MIB)
    vm.api.limit_job(job["id"], 0)
    yield deaths.end_of(vm, job["id"])
    clone.unlink()


def resumed(vm: Machine, job_id: str) -> None:
    vm.api.resume_job(job_id)
    wait.until("the removal's end", lambda: vm.api.jobs.get(job_id)["state"] == "done", 60)


def test_peer_03_a_snapshot_taken_behind_our_back_is_named_and_nothing_is_merged(
    world: World, writing_vm: VmOf
) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("ours")
    host = world.stack.hosts["h1"]
    theirs = vm.folder() / "theirs.qcow2"
    host.virsh("snapshot-create-as", f"vm-{vm.id}", "--disk-only", "--no-metadata", "--diskspec", f"vda,file={theirs}")
    before = vm.files()
    refused(lambda: vm.api.remove_snapshot(snapshot), 409, "chain_differs", vm.disks[0], "theirs.qcow2")
    refused(lambda: vm.api.create_snapshot(vm.id, {}), 409, "chain_differs", vm.disks[0])
    assert vm.files() == before
    vm.wait_for_writes(64)
    host.virsh("blockcommit", f"vm-{vm.id}", "vda", "--active", "--pivot", "--shallow")
    theirs.unlink()
    assert vm.remove(snapshot)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


def test_peer_05_a_volume_that_somebody_cloned_meanwhile_is_kept_and_named(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    goes, _ = vm.snapshot("goes"), vm.snapshot("kept")
    top = vm.folder() / vm.chain()[1]["volume_id"]
    with removal_stuck(vm, goes, top) as stuck:
        assert (stuck["state"], stuck["reason"]["code"]) == ("stuck", "volume_in_use"), stuck
        assert "clone.qcow2" in stuck["reason"]["message"], stuck
        assert top.exists()
        vm.wait_for_writes(64)
    resumed(vm, stuck["id"])
    deaths.assert_whole(vm, snapshots=1)


def test_peer_05_what_somebody_reads_as_a_whole_is_not_merged_at_all(writing_vm: VmOf) -> None:
    vm = writing_vm()
    goes, _ = vm.snapshot("goes"), vm.snapshot("kept")
    base, top, _ = (volume["volume_id"] for volume in vm.chain())
    with opened(vm.folder() / top):
        ended = deaths.end_of(vm, vm.api.remove_snapshot(goes)["id"])
        assert (ended["state"], ended["reason"]["code"]) == ("undone", "volume_in_use"), ended
        assert base in ended["reason"]["message"]
        assert len(vm.chain()) == 3
    assert vm.remove(goes)["state"] == "done"
    deaths.assert_whole(vm, snapshots=1)


def test_peer_09_one_disk_is_merged_and_told_although_the_other_cannot_be(writing_vm: VmOf) -> None:
    vm = writing_vm(disks=2)
    snapshot = vm.snapshot("both")
    base = vm.chain(1)[0]["volume_id"]
    stranger = vm.folder(1) / "clone.qcow2"
    spoil.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", "qcow2", stranger, 256 * MIB)
    ended = deaths.end_of(vm, vm.api.remove_snapshot(snapshot)["id"])
    assert ended["state"] == "undone"
    assert ended["reason"]["code"] == "volume_in_use"
    assert [len(vm.chain(0)), len(vm.chain(1))] == [1, 2]
    left = vm.api.snapshots.get(snapshot)
    assert ([disk["disk_id"] for disk in left["disks"]], left["partly_removed"]) == ([vm.disks[1]], True)
    stranger.unlink()
    assert vm.remove(snapshot)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


def test_peer_10_a_vm_is_stopped_and_started_while_its_removal_is_stuck(writing_vm: VmOf) -> None:
    vm = writing_vm()
    goes, _ = vm.snapshot("goes"), vm.snapshot("kept")
    with removal_stuck(vm, goes, vm.folder() / vm.chain()[1]["volume_id"]) as stuck:
        assert stuck["state"] == "stuck", stuck
        vm.power_off()
        vm.start()
        vm.wait_for_writes(64)
    resumed(vm, stuck["id"])
    vm.remove(vm.snapshot("and everything else works"))
    deaths.assert_whole(vm, snapshots=1)


def test_peer_12_of_two_removals_at_once_the_second_waits_for_its_turn(writing_vm: VmOf) -> None:
    vm = writing_vm()
    older, newer = vm.snapshot("older"), vm.snapshot("newer")
    vm.wait_for_writes(512)
    first = vm.api.remove_snapshot(older, bandwidth=256 * 1024)
    wait.until("some progress", lambda: vm.api.jobs.get(first["id"])["progress"]["end"] > 0, 60)
    refused(lambda: vm.api.remove_snapshot(newer), 409, "disk_busy", vm.disks[0], first["id"])
    vm.api.limit_job(first["id"], 0)
    assert deaths.end_of(vm, first["id"])["state"] == "done"
    assert vm.remove(newer)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


def test_peer_13_a_merge_that_its_guest_outruns_is_given_up_or_let_go(writing_vm: VmOf) -> None:
    vm = writing_vm(ring_mib=64, rate_kib=0)
    snapshot = vm.snapshot("outrun")
    vm.wait_for_writes(8192)
    first = vm.api.remove_snapshot(snapshot, bandwidth=64 * 1024)
    wait.until("some progress", lambda: vm.api.jobs.get(first["id"])["progress"]["end"] > 0, 60)
    vm.api.cancel_job(first["id"])
    assert deaths.end_of(vm, first["id"])["reason"]["code"] == "cancelled"
    again = vm.api.remove_snapshot(snapshot, bandwidth=64 * 1024)
    wait.until("some progress", lambda: vm.api.jobs.get(again["id"])["progress"]["end"] > 0, 60)
    vm.api.limit_job(again["id"], 0)
    assert deaths.end_of(vm, again["id"])["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.parametrize("point", ["pivot.after_pivot", "pivot.after_mark"])
def test_peer_07_a_vm_boots_after_qemu_and_agent_died_around_the_pivot(
    world: World, writing_vm: VmOf, point: str
) -> None:
    """The leaf is marked illegal in this moment, or the mark is missing: the next start finds the right one."""
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    pid = world.stack.hosts["h1"].qemu_pid(f"vm-{vm.id}")
    ended = deaths.remove_with_crash(world, vm, snapshot, "h1.agent", point, also=lambda: os.kill(pid, signal.SIGKILL))
    vm.wait_for_state("down")
    vm.start(check=True)
    assert vm.acks().findings() == []
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


def test_peer_04_a_removal_whose_answer_nobody_heard_is_done_and_gone(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    ended = deaths.remove_with_crash(world, vm, snapshot, "snapshots", "merge.record.after_ask")
    assert ended["state"] == "done", json.dumps(ended)
    with pytest.raises(ApiError) as caught:
        vm.api.remove_snapshot(snapshot)
    assert caught.value.code == "not_found"
    deaths.assert_whole(vm, snapshots=0)
