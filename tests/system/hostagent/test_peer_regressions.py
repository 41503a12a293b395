"""What hurt users of other systems, by number, where QEMU and the storage decide. docs/peers.md lists all."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import MIB, Agent, Vm

pytestmark = pytest.mark.lab


def qmp(agent: Agent, vm: Vm, command: str, **arguments: Any) -> Any:
    """Over libvirt's monitor; the answer's `return`."""
    words = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(agent.host.virsh("qemu-monitor-command", f"vm-{vm.id}", words))["return"]


def bitmaps(agent: Agent, vm: Vm) -> dict[str, dict[str, Any]]:
    """Of the node that the guest writes to, by name."""
    (device,) = [each for each in qmp(agent, vm, "query-block") if each.get("inserted")]
    return {each["name"]: each for each in device["inserted"].get("dirty-bitmaps", [])}


def stored_bitmaps(vm: Vm) -> dict[str, list[str]]:
    """Those in the header of the leaf of a VM that is down, by name, with their flags."""
    words = ["qemu-img", "info", "--output=json", str(vm.folder() / vm.leaf())]
    shown = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return {each["name"]: each["flags"] for each in shown["format-specific"]["data"].get("bitmaps", [])}


def leaf_node(agent: Agent, vm: Vm) -> str:
    (device,) = [each for each in qmp(agent, vm, "query-block") if each.get("inserted")]
    return str(device["inserted"]["node-name"])


def merge_active(agent: Agent, vm: Vm) -> None:
    request = vm.commit(len(vm.volumes[0]) - 2)
    vm.wait_ready()
    agent.ask("pivot", request)
    vm.finish(request)


def test_peer_08_what_a_job_still_copies_from_cannot_be_deleted(agent: Agent, vm: Vm) -> None:
    vm.snapshot()
    vm.writes_on()
    request = vm.commit(0, bandwidth=64 * 1024)
    top = {"vm_id": vm.id, "disk": request["disk"], "volume_id": request["top_id"], "claim": vm.claim}
    with pytest.raises(errors.Problem) as caught:
        agent.ask("discard_volume", top)
    assert caught.value.code in ("volume_in_use", "chain_differs"), caught.value
    assert (vm.folder() / request["top_id"]).exists()
    vm.power_off()
    vm.start()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_peer_11_a_removal_changes_no_other_volume_and_leaves_sound_images(agent: Agent, vm: Vm) -> None:
    for _ in range(2):
        vm.snapshot()
        vm.writes_on()
    parent = vm.folder() / vm.volumes[0][0]
    before = (parent.stat().st_ino, parent.read_bytes())
    merge_active(agent, vm)
    vm.writes_on()
    assert (parent.stat().st_ino, parent.read_bytes()) == before
    vm.power_off()
    for volume in vm.volumes[0]:
        checked = subprocess.run(["qemu-img", "check", str(vm.folder() / volume)], capture_output=True, check=False)
        assert checked.returncode == 0, checked
    assert vm.check().ok, vm.check().summary()


def test_peer_14_a_dirty_bitmap_goes_on_counting_through_snapshot_and_merge(agent: Agent, vm: Vm) -> None:
    """What a backup tool made of persistent bitmaps is in the leaf afterwards, whole, and counts new writes."""
    node = leaf_node(agent, vm)
    qmp(agent, vm, "block-dirty-bitmap-add", node=node, name="backup-1", persistent=True)
    vm.writes_on()
    before = bitmaps(agent, vm)["backup-1"]["count"]
    vm.snapshot()
    assert bitmaps(agent, vm)["backup-1"]["recording"], "libvirt goes on with it in the new leaf"
    vm.writes_on()
    merge_active(agent, vm)
    merged = bitmaps(agent, vm)["backup-1"]
    assert merged["recording"], merged
    assert not merged.get("inconsistent", False), merged
    assert merged["count"] > before > 0, "what was written between snapshot and merge is not counted"
    qmp(agent, vm, "block-dirty-bitmap-clear", node=leaf_node(agent, vm), name="backup-1")
    vm.writes_on()
    assert bitmaps(agent, vm)["backup-1"]["count"] > 0
    vm.power_off()
    assert stored_bitmaps(vm) == {"backup-1": ["auto"]}


@pytest.mark.parametrize("inside", [False, True])
def test_peer_14_a_dirty_bitmap_of_the_volume_that_goes_survives_in_the_one_below(
    agent: Agent, vm: Vm, inside: bool
) -> None:
    """Made by a backup tool after the snapshot: in the layer that is merged down, whichever that is then."""
    vm.writes_on()
    vm.snapshot()
    qmp(agent, vm, "block-dirty-bitmap-add", node=leaf_node(agent, vm), name="backup-2", persistent=True)
    vm.writes_on()
    before = bitmaps(agent, vm)["backup-2"]["count"]
    if inside:
        vm.snapshot()
        vm.writes_on()
        request = vm.commit(0)
        vm.wait_merged(request)
        vm.finish(request)
    else:
        merge_active(agent, vm)
    vm.writes_on()
    vm.power_off()
    words = ["qemu-img", "info", "--output=json", str(vm.folder() / vm.volumes[0][0])]
    told = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    assert [each["name"] for each in told["format-specific"]["data"]["bitmaps"]] == ["backup-2"]
    assert before > 0


def test_peer_01_a_stale_bitmap_in_the_base_does_not_stop_a_merge(agent: Agent, vm: Vm) -> None:
    """A bitmap that a killed QEMU left marked as in use, in the volume that is merged into."""
    qmp(agent, vm, "block-dirty-bitmap-add", node=leaf_node(agent, vm), name="stale", persistent=True)
    vm.writes_on()
    vm.power_off()  # only now is it on the storage
    vm.start()
    pid = agent.host.qemu_pid(f"vm-{vm.id}")
    subprocess.run(["kill", "-KILL", str(pid)], check=True)
    wait.until("the VM to be down", lambda: agent.ask("look_vm", {"vm_id": vm.id})["state"] == "down", 30)
    assert stored_bitmaps(vm) == {"stale": ["in-use", "auto"]}
    vm.start()
    vm.snapshot()
    vm.writes_on()
    merge_active(agent, vm)
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_peer_07_a_vm_boots_whenever_it_was_stopped_in_a_merge(agent: Agent, vm: Vm) -> None:
    """Stopped while it copies, when the mirror is ready, and after a cancel: each time it starts with everything."""
    vm.snapshot()
    vm.writes_on()
    for moment in ("copying", "ready", "cancelled"):
        vm.commit(0, bandwidth=64 * 1024 if moment == "copying" else 0)
        if moment != "copying":
            vm.wait_ready()
        if moment == "cancelled":
            request = vm.merge(0)
            agent.ask("cancel_job", {key: request[key] for key in ("vm_id", "disk", "claim")})
        vm.power_off()
        assert vm.check().ok, (moment, vm.check().summary())
        vm.number += 1
        vm.start()
    merge_active(agent, vm)
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_peer_02_rounds_of_snapshots_and_merges_do_not_make_the_leaf_grow(agent: Agent, vm: Vm) -> None:
    """The guest rewrites the same 16 MiB: what is on the storage stays that much and the metadata of one image."""
    for _ in range(4):
        vm.snapshot()
        vm.writes_on(count=1000)
        merge_active(agent, vm)
    vm.power_off()
    (leaf,) = vm.volumes[0]
    assert {path.name[:36] for path in vm.folder().iterdir()} == {leaf}
    assert (vm.folder() / leaf).stat().st_blocks * 512 < (16 + 8) * MIB
    assert vm.check().ok, vm.check().summary()
