"""A QEMU that dies around the end of an internal merge: what was not recorded is undone, and nothing is lost.

QEMU writes the child's header before the tables of base: of merges believed from that header most were not whole.
"""

import os
import random
import signal
import time

import pytest

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import Agent, Vm

pytestmark = pytest.mark.lab


def die(vm: Vm) -> None:
    """The guest's QEMU dies, and libvirt knows it."""
    os.kill(vm.agent.host.qemu_pid(f"vm-{vm.id}"), signal.SIGKILL)
    wait.until("the VM to be down", lambda: vm.agent.ask("look_vm", {"vm_id": vm.id})["state"] == "down", 30)


def stands_on(vm: Vm, volume_id: str) -> tuple[str, str]:
    """The record and the header of a volume."""
    facts = vm.agent.ask("look_disk", {"vm_id": None, "disk": vm.disks[0]})["storage"]
    (volume,) = [one for one in facts["volumes"] if one["volume_id"] == volume_id]
    return volume["parent_id"], volume["backing_id"]


def merged_without_a_record(vm: Vm) -> dict:
    """QEMU has done an internal merge, nobody recorded it, and QEMU is dead."""
    for _ in range(2):
        vm.writes_on()
        vm.snapshot()
    vm.writes_on()
    request = vm.commit(0)
    vm.wait_merged(request)
    die(vm)
    assert stands_on(vm, request["child_id"]) == (request["top_id"], request["base_id"])
    return request


def test_a_vm_never_starts_on_a_merge_that_was_not_recorded(agent: Agent, vm: Vm) -> None:
    request = merged_without_a_record(vm)
    with pytest.raises(errors.JobFailed):
        agent.ask("record_merge", request)
    discard = {"vm_id": vm.id, "disk": request["disk"], "volume_id": request["top_id"], "claim": vm.claim}
    with pytest.raises(errors.VolumeInUse):
        agent.ask("discard_volume", discard)
    vm.start()
    assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]
    vm.wait_merged(vm.commit(0))
    vm.commit(0)  # asked again it records what it finds done
    assert stands_on(vm, request["child_id"]) == (request["base_id"], request["base_id"])
    die(vm)
    vm.finish(request)
    assert vm.check().ok, vm.check().summary()
    vm.start()
    assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]


def test_a_cancel_puts_back_what_was_not_recorded(vm: Vm) -> None:
    request = merged_without_a_record(vm)
    vm.cancel(request)
    assert stands_on(vm, request["child_id"]) == (request["top_id"], request["top_id"])
    assert vm.check().ok, vm.check().summary()
    vm.cancel(request)
    vm.start()


def test_a_cancel_records_what_qemu_has_done(vm: Vm) -> None:
    for _ in range(2):
        vm.writes_on()
        vm.snapshot()
    request = vm.commit(0)
    vm.wait_merged(request)
    vm.cancel(request)
    assert stands_on(vm, request["child_id"]) == (request["base_id"], request["base_id"])
    die(vm)
    vm.finish(request)
    assert vm.check().ok, vm.check().summary()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_qemu_killed_at_the_end_of_internal_merges_loses_nothing(vm: Vm) -> None:
    """SIGKILL 0 to 30 ms after the child's header was written; each time all acknowledged blocks are read back."""
    moved = 0
    for number in range(int(os.environ.get("DRYSTONE_KILLS", "10"))):
        for _ in range(2):
            vm.writes_on(count=500)
            vm.snapshot()
        request = vm.commit(len(vm.volumes[0]) - 3)
        kill_when_the_header_changes(vm, request, delay=random.choice([0.0, random.uniform(0, 0.03)]))  # noqa: S311
        moved += stands_on(vm, request["child_id"]) == (request["top_id"], request["base_id"])
        vm.number += 1
        vm.cancel(request)
        vm.number += 1
        result = vm.check()
        assert result.ok, f"round {number}: {result.summary()}"
        vm.start()
        assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]
    print(f"{moved} headers named base when QEMU died")
    assert moved


def kill_when_the_header_changes(vm: Vm, request: dict, delay: float) -> None:
    pid = vm.agent.host.qemu_pid(f"vm-{vm.id}")
    child = os.open(vm.folder() / request["child_id"], os.O_RDONLY)
    try:
        limit = time.monotonic() + 60
        while request["top_id"].encode() in os.pread(child, 4096, 0) and time.monotonic() < limit:
            pass
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    finally:
        os.close(child)
    wait.until("the VM to be down", lambda: vm.agent.ask("look_vm", {"vm_id": vm.id})["state"] == "down", 30)
