"""Block jobs of others, and what a cancel may end, on real QEMU."""

from pathlib import Path
from typing import Any

import pytest

from contracts import errors
from tests.system.hostagent.lab import MIB, Agent, Vm, new_id

pytestmark = pytest.mark.lab


def test_a_job_that_somebody_else_began_is_not_touched(agent: Agent, vm: Vm) -> None:
    """Peer regression 12: a second removal meets 'in use by block job'."""
    for _ in range(3):
        vm.snapshot()
    vm.writes_on()
    chain = vm.look()["libvirt"]["chain"]
    folder = vm.folder()
    agent.host.virsh(
        "blockcommit", f"vm-{vm.id}", "vda", "--base", folder / chain[3], "--top", folder / chain[1], "--bandwidth", "1"
    )
    with pytest.raises(errors.ForeignJob):
        vm.commit(1)
    speed = vm.look()["qemu"]["job"]["speed"]
    with pytest.raises(errors.ForeignJob):
        agent.ask("set_bandwidth", {"vm_id": vm.id, "disk": vm.disks[0], "claim": vm.claim, "bandwidth": 0})
    with pytest.raises(errors.ForeignJob):
        vm.cancel(vm.merge(1))
    job = vm.look()["qemu"]["job"]
    assert (job["top_id"], job["speed"]) == (chain[1], speed)


def test_an_active_commit_over_several_layers_is_not_taken_for_ours(agent: Agent, vm: Vm) -> None:
    """Its graph names the layer in between as an intermediate node: neither that merge nor the topmost one is adopted,
    pivoted or cancelled."""
    for _ in range(2):
        vm.snapshot()
        vm.writes_on()
    lowest = vm.folder() / vm.volumes[0][0]
    agent.host.virsh("blockcommit", f"vm-{vm.id}", "vda", "--base", lowest, "--active", "--bandwidth", "1")
    job = vm.look()["qemu"]["job"]
    assert (job["base_id"], job["top_id"], job["child_id"]) == (vm.volumes[0][0], vm.volumes[0][2], None)
    for base in (0, 1):
        for method, more in (("start_commit", {"bandwidth": 0}), ("pivot", {})):
            with pytest.raises((errors.ForeignJob, errors.ChainDiffers)):
                agent.ask(method, {**vm.merge(base), **more})
        with pytest.raises(errors.ForeignJob):
            vm.cancel(vm.merge(base))
        vm.number += 1
    job = vm.look()["qemu"]["job"]
    assert (job["speed"], job["base_id"]) == (MIB, vm.volumes[0][0])
    agent.host.virsh("blockjob", f"vm-{vm.id}", "vda", "--abort")
    vm.wait_merged(vm.commit(0))


@pytest.mark.parametrize("relative", [True, False])
def test_a_job_of_somebody_else_with_our_ends_is_adopted(agent: Agent, vm: Vm, relative: bool) -> None:
    """Inside the chain; one whose new backing name is absolute is recorded too, and nothing is lost."""
    for _ in range(3):
        vm.snapshot()
        vm.writes_on()
    folder, (_, base, top, _) = vm.folder(), vm.volumes[0]
    words: list[str | Path] = ["--base", folder / base, "--top", folder / top, "--bandwidth", "1"]
    agent.host.virsh("blockcommit", f"vm-{vm.id}", "vda", *words, *(["--keep-relative"] if relative else []))
    request = vm.commit(1)
    assert vm.look()["qemu"]["job"]["speed"] == 0, "the limit is ours"
    vm.wait_merged(request)
    finished(vm, request)


def test_an_active_commit_of_somebody_else_with_our_ends_is_adopted(agent: Agent, vm: Vm) -> None:
    for _ in range(2):
        vm.snapshot()
        vm.writes_on()
    folder, (_, base, _) = vm.folder(), vm.volumes[0]
    words: list[str | Path] = ["--base", folder / base, "--active", "--bandwidth", "1"]
    agent.host.virsh("blockcommit", f"vm-{vm.id}", "vda", *words)
    request = vm.commit(1)
    vm.wait_ready()
    agent.ask("pivot", request)
    finished(vm, request)


def finished(vm: Vm, request: dict[str, Any]) -> None:
    """Recorded, its files gone, and every acknowledged block there; the VM starts with them."""
    vm.finish(request)
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()
    vm.start()
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_a_cancel_without_ends_is_only_a_fence(agent: Agent, vm: Vm) -> None:
    vm.snapshot()
    vm.writes_on()
    request = vm.commit(0, bandwidth=MIB)
    agent.ask("cancel_job", {key: request[key] for key in ("vm_id", "disk", "claim")})
    assert vm.look()["qemu"]["job"]["top_id"] == request["top_id"]
    with pytest.raises(errors.StaleClaim):
        agent.ask("pivot", request)
    late = {"flow_id": new_id(), "number": 1}
    vm.number = 5
    agent.ask("start_commit", {**vm.merge(0), "bandwidth": MIB})  # adopted by the newer claim
    with pytest.raises(errors.StaleClaim):
        vm.cancel({**request, "claim": late})
    assert vm.look()["qemu"]["job"]["top_id"] == request["top_id"]
    vm.cancel(vm.merge(0))
    assert vm.look()["qemu"]["job"] is None
