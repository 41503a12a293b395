"""A snapshot that is taken back: late asks are fenced, and its new volume goes only if no QEMU switches to it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts import errors
from deploy.guest import image
from deploy.stack import wait
from deploy.stack.host import Host
from tests.system.hostagent.lab import MIB, Agent, Vm, in_background, new_id

pytestmark = pytest.mark.lab


@pytest.fixture
def hasty(host: Host) -> Iterator[Agent]:
    """An agent whose asks of libvirt run out of time after two seconds, the first snapshot hanging for twelve."""
    made = Agent(host, ask_seconds=2.0)
    made.env["DRYSTONE_TEST_HANG"] = "snapshotCreateXML:12"
    made.start()
    yield made
    made.caller.close()


def new_volume(vm: Vm) -> dict:
    """A volume on the leaf, and the ask that would switch the guest to it."""
    new, parent = new_id(), vm.volumes[0][-1]
    ask = {"disk": vm.disks[0], "volume_id": new, "parent_id": parent}
    vm.agent.ask("create_volume", {**ask, "capacity": 256 * MIB})
    return {"vm_id": vm.id, "disks": [ask], "claim": vm.claim}


def fence(vm: Vm, switch: dict) -> None:
    vm.agent.ask("cancel_job", {"vm_id": vm.id, "disk": vm.disks[0], "claim": switch["claim"]})


def drop(vm: Vm, switch: dict) -> None:
    """As the undo of a create does, under the claim of the fence."""
    volume = switch["disks"][0]["volume_id"]
    vm.agent.ask("discard_volume", {"vm_id": vm.id, "disk": vm.disks[0], "volume_id": volume, "claim": switch["claim"]})


def test_a_fenced_switch_is_refused_and_its_volume_goes(agent: Agent, vm: Vm) -> None:
    switch = new_volume(vm)
    fence(vm, switch)
    with pytest.raises(errors.StaleClaim):
        agent.ask("switch_leaves", switch)
    drop(vm, switch)
    drop(vm, switch)
    assert vm.leaf() == vm.volumes[0][0]
    assert {path.name[:36] for path in vm.folder().iterdir()} == set(vm.volumes[0])
    vm.writes_on()
    vm.number += 1
    vm.snapshot()
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_records_that_are_put_right_survive_the_agent_and_are_put_right_once(agent: Agent, vm: Vm) -> None:
    """A volume that no guest ever used is the leaf of the records, and the doctor makes them follow QEMU."""
    unused = new_volume(vm)["disks"][0]["volume_id"]
    assert vm.leaf() == unused
    chain = {"vm_id": vm.id, "disk": vm.disks[0], "chain": vm.volumes[0], "unused": [unused], "claim": vm.claim}
    agent.crash_at("chain.after_ask")
    with in_background(agent.ask, "record_chain", chain):
        agent.wait_crashed()
    agent.start()
    assert vm.leaf() == vm.volumes[0][0]
    agent.ask("record_chain", chain)
    assert vm.leaf() == vm.volumes[0][0]
    vm.writes_on()
    vm.power_off()
    vm.start()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_nothing_is_dropped_while_the_call_that_switches_hangs(hasty: Agent, folder: Path, guest: image.Image) -> None:
    """It comes through at last: the guest writes to the new volume, which is whole and stays."""
    vm = Vm(hasty, folder, guest)
    vm.start()
    switch = new_volume(vm)
    with pytest.raises(errors.HypervisorAway):
        hasty.ask("switch_leaves", switch)
    with pytest.raises(errors.HypervisorAway, match="still hangs"):
        fence(vm, switch)
    with pytest.raises(errors.HypervisorAway, match="still hangs"):
        drop(vm, switch)
    new = switch["disks"][0]["volume_id"]
    wait.until("the call to come through", lambda: vm.look()["qemu"]["chain"][0] == new, 60)
    with pytest.raises(errors.VolumeInUse):
        drop(vm, switch)
    assert vm.leaf() == new
    vm.volumes[0].append(new)
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_a_switch_that_races_a_drop_never_leaves_a_guest_on_a_dropped_volume(
    agent: Agent, make_vm: Callable[..., Vm]
) -> None:
    """libvirt is asked beside the agent, as a call whose asker died would come through."""
    vm = make_vm()
    vm.start()
    for _ in range(5):
        switch = new_volume(vm)
        new = switch["disks"][0]["volume_id"]
        with in_background(by_hand, vm, new), contextlib.suppress(errors.VolumeInUse, errors.VmUnsure):
            drop(vm, switch)
        wait.until("QEMU and libvirt to agree", lambda: vm.look()["unsure"] is None, 30)
        chain = vm.look()["qemu"]["chain"]
        assert vm.leaf() == chain[0]
        if chain[0] == new:
            vm.volumes[0].append(new)
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def by_hand(vm: Vm, new: str) -> None:
    options = ["--disk-only", "--no-metadata", "--reuse-external"]
    with contextlib.suppress(Exception):  # refused where the volume was faster gone
        vm.agent.host.virsh(
            "snapshot-create-as", f"vm-{vm.id}", *options, "--diskspec", f"vda,file={vm.folder() / new}"
        )
