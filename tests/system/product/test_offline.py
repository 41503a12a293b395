"""Snapshots of VMs that are down, that stop and that start while they are merged, through the whole product."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from client.errors import ApiError
from deploy.stack import wait
from deploy.world import Machine, World
from tests.system.product import deaths, spoil

pytestmark = pytest.mark.lab
VmOf = Callable[..., Machine]
MIB = 2**20
COPY = "offline.before_copy", "offline.after_copy"
POINTS = [*COPY, "offline.after_mark", "offline.after_record", "volume.record.after_top", "record.after_ask"]
INSIDE = [*COPY, "offline.after_header", "volume.record.after_top", "volume.record.after_child"]


def down(vm: Machine, *names: str, writes: int = 256) -> list[str]:
    """Snapshots, with something written after each, of a VM that is down then."""
    taken = []
    for name in names:
        taken.append(vm.snapshot(name))
        vm.wait_for_writes(writes)
    vm.power_off()
    return taken


def slowly(vm: Machine, snapshot_id: str, bandwidth: int = MIB) -> dict[str, Any]:
    """A removal that copies offline and does not end soon."""
    job = vm.api.remove_snapshot(snapshot_id, bandwidth=bandwidth)

    def copies() -> bool:
        progress = vm.api.jobs.get(job["id"])["progress"]
        return bool(progress["offline"] and progress["cur"] > 0)

    wait.until("some progress offline", copies, 60)
    return dict(job)


def whole(vm: Machine, *, snapshots: int) -> None:
    """From the storage, and for the guest, which reads back all that it ever wrote."""
    if vm.state() != "down":
        vm.power_off()
    for disk in range(len(vm.disks)):
        assert vm.check(disk).ok, vm.check(disk).summary()
    vm.start(check=True)
    deaths.assert_whole(vm, snapshots=snapshots)


def test_all_snapshots_of_a_vm_that_is_down_are_merged(writing_vm: VmOf) -> None:
    """One inside, the newest, the whole rest in one job; both disks, one after the other, under the VM's one lease."""
    vm = writing_vm(disks=2)
    taken = down(vm, *("first", "second", "third", "fourth", "fifth"))
    assert vm.remove(taken[1])["state"] == "done"
    assert vm.remove(taken[4])["state"] == "done"
    assert len(vm.chain()) == 4
    removal = vm.api.remove_snapshots({"snapshots": [taken[0], taken[2], taken[3]]})
    assert deaths.end_of(vm, removal["id"])["state"] == "done"
    assert [len(vm.chain(disk)) for disk in (0, 1)] == [len(vm.files(disk)) for disk in (0, 1)] == [1, 1]
    whole(vm, snapshots=0)


@pytest.mark.chaos
def test_a_start_is_refused_while_it_copies_and_goes_through_after_a_cancel(writing_vm: VmOf) -> None:
    vm = writing_vm()
    (snapshot,) = down(vm, "goes", writes=2048)
    job = slowly(vm, snapshot)
    with pytest.raises(ApiError, match="its disks are being written"):
        vm.api.start_vm(vm.id)
    vm.api.cancel_job(job["id"])
    assert deaths.end_of(vm, job["id"])["reason"]["code"] == "cancelled"
    vm.start(check=True)
    assert vm.remove(snapshot)["state"] == "done"
    whole(vm, snapshots=0)


@pytest.mark.chaos
def test_a_start_that_was_refused_waits_for_the_copy_in_hand_only(writing_vm: VmOf) -> None:
    """The merges after it let it in, and go on under the VM that runs."""
    vm = writing_vm()
    taken = down(vm, "first", "kept", "second", writes=1024)
    job = vm.api.remove_snapshots({"snapshots": [taken[0], taken[2]], "bandwidth": MIB})

    def first() -> list[int]:
        return [row["progress"]["cur"] for row in vm.api.merges.all(removal_id=job["id"])]

    wait.until("some progress", lambda: any(first()), 60)

    def started() -> bool:
        try:
            vm.api.start_vm(vm.id)
        except ApiError as refused:
            if refused.code != "lease_held":
                raise
            return False
        return True

    wait.until("the start", started, 60, every=1.0)
    states = [row["state"] for row in vm.api.merges.all(removal_id=job["id"])]
    assert states.count("done") < 2, states
    assert deaths.end_of(vm, job["id"])["state"] == "done"
    whole(vm, snapshots=1)


def live_copy(writing_vm: VmOf, *, newest: bool) -> tuple[Machine, str]:
    """A VM that runs while its snapshot is copied, and has some seconds to go; the removal's job."""
    vm = writing_vm(ring_mib=64, rate_kib=0)
    snapshot = vm.snapshot("goes")
    vm.wait_for_writes(8192)
    if not newest:
        vm.snapshot("stays")
    job = vm.api.remove_snapshot(snapshot, bandwidth=4 * MIB)
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
    return vm, str(job["id"])


@pytest.mark.chaos
@pytest.mark.parametrize("newest", [False, True])
def test_a_merge_whose_vm_is_killed_goes_on_offline(world: World, writing_vm: VmOf, newest: bool) -> None:
    vm, job_id = live_copy(writing_vm, newest=newest)
    os.kill(world.stack.hosts["h1"].qemu_pid(f"vm-{vm.id}"), signal.SIGKILL)
    assert deaths.end_of(vm, job_id)["state"] == "done"
    vm.wait_for_state("down")
    whole(vm, snapshots=0 if newest else 1)


@pytest.mark.chaos
@pytest.mark.parametrize("newest", [False, True])
def test_a_merge_whose_guest_shuts_down_goes_on_offline(writing_vm: VmOf, newest: bool) -> None:
    """Nobody ends its QEMU: it ends by itself, with the job."""
    vm, job_id = live_copy(writing_vm, newest=newest)
    vm.api.shut_down_vm(vm.id)
    vm.wait_for_state("down")
    assert vm.api.jobs.get(job_id)["state"] == "running"
    assert deaths.end_of(vm, job_id)["state"] == "done"
    whole(vm, snapshots=0 if newest else 1)


@pytest.mark.chaos
def test_a_merge_whose_vm_is_powered_off_before_it_began_goes_on_offline(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    vm.wait_for_writes(256)
    service = world.stack.process("snapshots")
    service.crash_at("merge.commit.before_ask")
    job = vm.api.remove_snapshot(snapshot)
    wait.until("the service to die", service.crashed, 60)
    vm.power_off()
    service.start()
    assert deaths.end_of(vm, job["id"])["state"] == "done"
    whole(vm, snapshots=0)


@pytest.mark.chaos
def test_the_agent_dies_while_it_copies(world: World, writing_vm: VmOf) -> None:
    """The copy goes with it, and begins anew."""
    vm = writing_vm()
    (snapshot,) = down(vm, "goes", writes=2048)
    job = slowly(vm, snapshot, 2 * MIB)
    agent = world.stack.process("h1.agent")
    agent.kill()
    agent.start()
    assert deaths.end_of(vm, job["id"])["state"] == "done"
    whole(vm, snapshots=0)


@pytest.mark.chaos
def test_the_service_dies_while_it_copies(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    (snapshot,) = down(vm, "goes", writes=2048)
    job = slowly(vm, snapshot, 2 * MIB)
    service = world.stack.process("snapshots")
    service.kill()
    service.start()
    assert deaths.end_of(vm, job["id"])["state"] == "done"
    whole(vm, snapshots=0)


@pytest.mark.chaos
@pytest.mark.parametrize("point", [f"merge.{step}.{when}" for step in ("commit", "record") for when in deaths.WHENS])
def test_the_service_dies_at_a_crash_point(world: World, writing_vm: VmOf, point: str) -> None:
    vm = writing_vm()
    (snapshot,) = down(vm, "goes")
    assert deaths.remove_with_crash(world, vm, snapshot, "snapshots", point)["state"] == "done"
    whole(vm, snapshots=0)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("point", "inside"), [*((point, False) for point in POINTS), *((point, True) for point in INSIDE)]
)
def test_the_writer_dies_at_a_crash_point(world: World, writing_vm: VmOf, point: str, inside: bool) -> None:
    """Done, or undone with the reason and done by the next request."""
    vm = writing_vm()
    taken = down(vm, "goes", "kept") if inside else down(vm, "goes")
    ended = deaths.remove_with_crash(world, vm, taken[0], "h1.agent", point)
    if ended["state"] != "done":
        assert (ended["state"], ended["reason"]["code"]) == ("undone", "job_failed"), ended
        assert vm.check().ok, vm.check().summary()
        assert vm.remove(taken[0])["state"] == "done"
    whole(vm, snapshots=len(taken) - 1)


@pytest.mark.chaos
def test_a_storage_that_is_full_undoes_it(world: World, writing_vm: VmOf) -> None:
    with spoil.small_storage(world, "small-offline", 160) as small:
        domain = spoil.domain_on(world, "small-offline", small.path)
        # qemu-img copies 16 MiB before a limit holds it back
        writing = {"mib": 64, "ring_mib": 48, "order": "sequential", "batch": 1024}
        vm = spoil.machine_on(world, small, domain["id"], "on-small-offline", **writing)
        vm.start()
        (snapshot,) = down(vm, "goes", writes=12288)
        job = slowly(vm, snapshot, 2 * MIB)
        small.fill()
        ended = deaths.end_of(vm, job["id"])
        assert (ended["state"], ended["reason"]["code"]) == ("undone", "no_space"), ended
        small.relieve()  # the check itself takes space beside the image
        assert vm.check().ok, vm.check().summary()
        assert vm.remove(snapshot)["state"] == "done"
        whole(vm, snapshots=0)
        vm.power_off()


@pytest.mark.chaos
def test_another_host_does_not_start_a_vm_that_is_being_merged(two_hosts_world: World) -> None:
    world = two_hosts_world
    vm = world.machine("two", ring_mib=16, rate_kib=4096)
    vm.start()
    (snapshot,) = down(vm, "goes", writes=2048)
    job = slowly(vm, snapshot)
    for host in world.stack.hosts.values():
        with pytest.raises(ApiError, match="its disks are being written"):
            vm.api.start_vm(vm.id, host.id)
    vm.api.cancel_job(job["id"])
    assert deaths.end_of(vm, job["id"])["state"] == "undone"
    assert vm.remove(snapshot)["state"] == "done"
    whole(vm, snapshots=0)
    vm.power_off()


@pytest.mark.chaos
def test_another_host_goes_on_when_the_one_that_copies_dies(two_hosts_world: World) -> None:
    """Once the lease of the dead one has run out."""
    world = two_hosts_world
    vm = world.machine("moves", ring_mib=16, rate_kib=4096)
    vm.start()
    (snapshot,) = down(vm, "goes", writes=1024)
    job = slowly(vm, snapshot)
    copies = vm.api.removal(job["id"])["merges"][0]["host_id"]
    name = next(host.name for host in world.stack.hosts.values() if host.id == copies)
    world.stack.kill(name)
    try:
        assert deaths.end_of(vm, job["id"], 240)["state"] == "done"
        assert vm.api.removal(job["id"])["merges"][0]["host_id"] != copies
    finally:
        world.stack.start_part(name)
        world.stack.start_part(f"{name}.agent")
        world.wait_for_host(copies)
    whole(vm, snapshots=0)
    vm.power_off()
