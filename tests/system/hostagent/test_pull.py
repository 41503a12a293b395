"""Layers are pulled up into the active volume of a writing guest on real QEMU, and everything dies around the end.

At the end of a pull QEMU writes top's header before the tables that make what was pulled readable: what is believed is
the record, which is made when these tables are on the storage.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts import errors
from deploy.guest import image
from deploy.stack import wait
from tests.system.hostagent.lab import MIB, Agent, Vm, in_background

pytestmark = pytest.mark.lab


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 MiB. (Mounted before the host is there: it sees no later mounts.)"""
    disk, folder = tmp_path / "disk", tmp_path / "small"
    folder.mkdir()
    with disk.open("wb") as file:
        file.truncate(160 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def layers(vm: Vm, count: int, writes: int = 100) -> None:
    for _ in range(count):
        vm.writes_on(writes)
        vm.snapshot()
    vm.writes_on(20)


def files(vm: Vm) -> set[str]:
    return {path.name[:36] for path in vm.folder().iterdir()}


def stands_on(vm: Vm, volume_id: str) -> tuple[str | None, str | None]:
    """The record and the header of a volume."""
    facts = vm.agent.ask("look_disk", {"vm_id": None, "disk": vm.disks[0]})["storage"]
    (volume,) = [one for one in facts["volumes"] if one["volume_id"] == volume_id]
    return volume["parent_id"], volume["backing_id"]


def down(vm: Vm) -> None:
    wait.until("the VM to be down", lambda: vm.agent.ask("look_vm", {"vm_id": vm.id})["state"] == "down", 30)


def die(vm: Vm) -> None:
    os.kill(vm.agent.host.qemu_pid(f"vm-{vm.id}"), signal.SIGKILL)
    down(vm)


def test_layers_are_pulled_up_under_a_writing_guest(agent: Agent, vm: Vm) -> None:
    layers(vm, 4)
    top = vm.volumes[0][-1]
    request = vm.pull(2, bandwidth=MIB)
    job = vm.look()["qemu"]["job"]
    assert (job["type"], job["base_id"], job["top_id"], job["child_id"]) == (
        "pull",
        request["base_id"],
        top,
        None,
    )
    with pytest.raises(errors.ForeignJob):
        vm.pull(3)
    with pytest.raises(errors.ForeignJob):
        vm.commit(3)
    agent.ask("start_pull", {**request, "bandwidth": 0})  # the same again: adopted, and its limit with it
    vm.wait_pulled(request)
    agent.ask("start_pull", {**request, "bandwidth": 0})  # once more: recorded
    assert stands_on(vm, top) == (request["below_id"], request["below_id"])
    vm.finish_pull(request)
    agent.ask("record_pull", request)
    facts = vm.look()
    assert facts["qemu"]["chain"] == facts["libvirt"]["chain"] == vm.volumes[0][::-1]
    assert (facts["storage"]["leaf"], facts["unsure"]) == (top, None)
    vm.writes_on()
    assert files(vm) == set(vm.volumes[0])
    assert [news["status"] for name, news in agent.news if name == "job_changed"][-1] == "completed"
    vm.power_off()
    assert vm.check().ok, vm.check().summary()
    vm.start()


def test_a_whole_chain_goes_up_and_a_new_snapshot_comes_down_again(vm: Vm) -> None:
    layers(vm, 2)
    request = vm.pull(0)
    vm.wait_pulled(request)
    vm.finish_pull(request)
    assert vm.volumes[0] == [request["top_id"]]
    assert stands_on(vm, request["top_id"]) == (None, None)
    layers(vm, 1)
    merge = vm.commit(0)
    vm.wait_ready()
    vm.agent.ask("pivot", merge)
    vm.finish(merge)
    vm.power_off()
    assert vm.check().ok, vm.check().summary()
    assert files(vm) == set(vm.volumes[0])


@pytest.mark.parametrize("base", [0, 1])
def test_a_vm_never_starts_on_a_pull_that_was_not_recorded(agent: Agent, vm: Vm, base: int) -> None:
    layers(vm, 2)
    request = vm.pull(base)
    vm.wait_pulled(request)
    die(vm)
    top, was = request["top_id"], vm.volumes[0][-2]
    assert stands_on(vm, top) == (was, request["below_id"])
    with pytest.raises(errors.JobFailed):
        agent.ask("record_pull", request)
    vm.start()
    assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]
    die(vm)
    assert vm.check().ok, vm.check().summary()


def test_a_cancel_ends_the_job_or_finishes_what_was_faster(agent: Agent, vm: Vm) -> None:
    layers(vm, 2, writes=300)
    request = vm.pull(0, bandwidth=MIB)
    vm.cancel_pull(request)
    facts = vm.look()
    assert facts["qemu"]["job"] is None
    assert facts["qemu"]["chain"] == facts["libvirt"]["chain"] == vm.volumes[0][::-1]
    with pytest.raises(errors.StaleClaim):
        agent.ask("start_pull", {**request, "bandwidth": 0})
    vm.number += 1
    request = vm.pull(0)
    vm.wait_pulled(request)
    vm.cancel_pull(request)  # too late: it is recorded
    assert stands_on(vm, request["top_id"]) == (None, None)
    die(vm)
    vm.finish_pull(request)
    assert vm.check().ok, vm.check().summary()


def test_a_cancel_without_a_qemu_puts_back_what_was_not_recorded(vm: Vm) -> None:
    layers(vm, 2)
    request = vm.pull(1)
    vm.wait_pulled(request)
    die(vm)
    vm.cancel_pull(request)
    assert stands_on(vm, request["top_id"]) == (request["base_id"], request["base_id"])
    vm.cancel_pull(request)
    assert vm.check().ok, vm.check().summary()


def test_what_cannot_be_pulled_is_refused_before_anything_is_begun(agent: Agent, vm: Vm) -> None:
    layers(vm, 3, writes=20)
    request = vm.up(2)
    for wrong in ({"below_id": None}, {"below_id": vm.volumes[0][0]}, {"between": [vm.volumes[0][1]]}):
        with pytest.raises(errors.ChainDiffers):
            agent.ask("start_pull", {**request, **wrong})
    not_active = {"top_id": vm.volumes[0][2], "base_id": vm.volumes[0][1], "below_id": vm.volumes[0][0]}
    with pytest.raises(errors.ChainDiffers):
        agent.ask("start_pull", {**request, **not_active})
    stranger = vm.folder() / "backup.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", vm.volumes[0][2], "-F", "qcow2", str(stranger)]
    subprocess.run([*words, "256M"], check=True)
    with pytest.raises(errors.VolumeInUse, match=r"backup\.qcow2"):
        vm.pull(2)
    stranger.unlink()
    assert vm.look()["qemu"]["job"] is None
    vm.wait_pulled(vm.pull(2))


@pytest.mark.parametrize("point", ["commit.before_ask", "commit.after_ask", "commit.after_begin"])
def test_a_pull_is_begun_or_adopted_after_the_agent_died_in_it(agent: Agent, vm: Vm, point: str) -> None:
    layers(vm, 2)
    agent.crash_at(point)
    with pytest.raises(errors.NoAnswer):
        vm.pull(0)
    agent.wait_crashed()
    agent.start()
    request = vm.pull(0)
    vm.wait_pulled(request)
    vm.finish_pull(request)
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


@pytest.mark.parametrize("point", ["record.before_flush", "record.after_flush", "record.after_ask"])
def test_a_record_goes_on_after_the_agent_died_in_it(agent: Agent, vm: Vm, point: str) -> None:
    layers(vm, 3)
    request = vm.pull(1)
    vm.wait_pulled(request)
    agent.crash_at(point)
    with in_background(agent.ask, "record_pull", request):
        agent.wait_crashed()
    agent.start()
    vm.finish_pull(request)
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()
    assert files(vm) == set(vm.volumes[0])


def test_a_pull_on_a_full_disk_fails_and_leaves_the_chain(small: Path, agent: Agent, guest: image.Image) -> None:
    """A stream does not pause on ENOSPC, it fails. The guest stands still at its own next write until there is room."""
    vm = Vm(agent, small, guest)
    vm.start()
    layers(vm, 1, writes=600)
    fill = small / "fill"
    room = os.statvfs(small)
    with open(fill, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - 2 * MIB))
    request = vm.pull(0)
    wait.until("the job to be gone", lambda: vm.look()["qemu"]["job"] is None, 60)
    assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1], vm.last_words()
    assert stands_on(vm, request["top_id"])[1] == request["base_id"]
    fill.unlink()
    if not vm.running():
        agent.host.virsh("resume", f"vm-{vm.id}")
    vm.writes_on()
    request = vm.pull(0)
    vm.wait_pulled(request)
    vm.finish_pull(request)
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


@pytest.mark.timeout(300)
def test_libvirtd_killed_at_the_end_of_a_pull_is_brought_back(agent: Agent, vm: Vm) -> None:
    for delay in (0.0, 0.003, 0.01):
        layers(vm, 1, writes=50)
        request = vm.pull(0, bandwidth=MIB)
        agent.ask("set_bandwidth", {**{k: request[k] for k in ("vm_id", "disk", "claim")}, "bandwidth": 0})
        header_changes(vm, request)
        time.sleep(delay)
        agent.host.kill_libvirtd()
        agent.host.start_libvirtd()
        wait.until("libvirt to be back", lambda: agent.beat()["problem"] is None, 30)
        agent.ask("start_pull", {**request, "bandwidth": 0})  # repairs what its death left, and records
        vm.finish_pull(request)
        facts = vm.look()
        assert facts["qemu"]["chain"] == facts["libvirt"]["chain"] == vm.volumes[0][::-1]
        vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def header_changes(vm: Vm, request: dict) -> None:
    """Wait until top's header does not name what it named."""
    was = (request["between"] or [request["base_id"]])[0].encode()
    top = os.open(vm.folder() / request["top_id"], os.O_RDONLY)
    try:
        limit = time.monotonic() + 60
        while was in os.pread(top, 4096, 0) and time.monotonic() < limit:
            pass
    finally:
        os.close(top)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_qemu_killed_at_the_end_of_pulls_loses_nothing(vm: Vm) -> None:
    """SIGKILL 0 to 30 ms after top's header was written; each time all acknowledged blocks are read back."""
    moved = 0
    for number in range(int(os.environ.get("DRYSTONE_KILLS", "10"))):
        layers(vm, 2, writes=300)
        pid = vm.agent.host.qemu_pid(f"vm-{vm.id}")
        request = vm.pull(len(vm.volumes[0]) - 3)
        header_changes(vm, request)
        time.sleep(random.choice([0.0, random.uniform(0, 0.03)]))  # noqa: S311 - a moment, no secret
        os.kill(pid, signal.SIGKILL)
        down(vm)
        moved += stands_on(vm, request["top_id"])[1] == request["below_id"]
        vm.number += 1
        vm.cancel_pull(request)
        vm.number += 1
        result = vm.check()
        assert result.ok, f"round {number}: {result.summary()}"
        vm.start()
        assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]
    print(f"{moved} headers were changed when QEMU died")
    assert moved


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_qemu_killed_around_the_record_of_pulls_loses_nothing(vm: Vm) -> None:
    """SIGKILL while a pull is recorded: either the record was begun and is finished, or it is put back."""
    recorded = 0
    for number in range(int(os.environ.get("DRYSTONE_KILLS", "10"))):
        layers(vm, 2, writes=300)
        pid = vm.agent.host.qemu_pid(f"vm-{vm.id}")
        request = vm.pull(len(vm.volumes[0]) - 3)
        vm.wait_pulled(request)
        with in_background(vm.agent.ask, "record_pull", request):
            time.sleep(random.uniform(0, 0.12))  # noqa: S311 - a moment, no secret
            os.kill(pid, signal.SIGKILL)
        down(vm)
        vm.number += 1
        vm.cancel_pull(request)
        vm.number += 1
        request["claim"] = vm.claim
        try:
            vm.finish_pull(request)
            recorded += 1
        except errors.Problem:
            assert stands_on(vm, request["top_id"])[1] == vm.volumes[0][-2]
        result = vm.check()
        assert result.ok, f"round {number}: {result.summary()}"
        vm.start()
        assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]
    print(f"{recorded} pulls were recorded")
