"""Removals of many snapshots on real machines: the guest writes all the time, and nothing of it is lost."""

import hashlib
import json
import subprocess
from collections.abc import Callable

import pytest

from client.errors import ApiError
from deploy.stack import wait
from deploy.world import Machine, World
from tests.chaos import operations
from tests.system.product import deaths

pytestmark = pytest.mark.lab

VmOf = Callable[..., Machine]


def take(vm: Machine, count: int, writes: int = 32) -> list[str]:
    taken = []
    for number in range(count):
        taken.append(vm.snapshot(f"number {number}"))
        vm.wait_for_writes(writes)
    return taken


def backing_names(vm: Machine) -> list[str]:
    """As QEMU reads them, the leaf's first."""
    leaf = vm.folder() / vm.chain()[-1]["volume_id"]
    command = ("qemu-img", "info", "-U", "--backing-chain", "--output=json", str(leaf))
    told = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    return [one["backing-filename"] for one in told if "backing-filename" in one]


def test_six_of_eight_snapshots_go_in_one_request(writing_vm: VmOf) -> None:
    vm = writing_vm()
    taken = take(vm, 8)
    kept = [taken[2], taken[5]]
    body = {"snapshots": [one for one in taken if one not in kept]}
    plan = vm.api.remove_snapshots({**body, "dry_run": True})
    assert sorted(merge["layers"] for merge in plan["merges"]) == [2, 2, 2]
    assert len(vm.chain()) == 9
    removal = vm.api.remove_snapshots(body)
    assert deaths.end_of(vm, removal["id"], 180)["state"] == "done"
    told = vm.api.removal(removal["id"])
    assert [item["state"] for item in told["items"]] == ["done"] * 6
    assert [row["id"] for row in vm.api.snapshots.all(vm_id=vm.id)] == kept
    assert all(row["restorable"] for row in vm.api.snapshots.all(vm_id=vm.id))
    deaths.assert_whole(vm, snapshots=2)


def test_one_disk_of_a_snapshot_goes_and_the_rest_is_kept(writing_vm: VmOf) -> None:
    vm = writing_vm(disks=2)
    first, second = take(vm, 2)
    pairs = [{"snapshot_id": one, "disk_id": vm.disks[1]} for one in (first, second)]
    removal = vm.api.remove_snapshots({"disk_snapshots": pairs})
    assert deaths.end_of(vm, removal["id"])["state"] == "done"
    assert [len(vm.chain(0)), len(vm.chain(1))] == [3, 1]
    left = list(vm.api.snapshots.all(vm_id=vm.id))
    assert [(row["partly_removed"], len(row["disks"])) for row in left] == [(True, 1), (True, 1)]
    with pytest.raises(ApiError, match="were expected"):
        vm.api.remove_snapshots({"filter": {"vm_id": vm.id}, "expected_count": 3})
    removal = vm.api.remove_snapshots({"filter": {"vm_id": vm.id}, "expected_count": 2})
    assert deaths.end_of(vm, removal["id"])["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


def test_the_rest_of_a_removal_is_cancelled_and_removed_by_a_retry(writing_vm: VmOf) -> None:
    vm = writing_vm()
    first, kept, third = take(vm, 3, writes=1024)
    removal = vm.api.remove_snapshots({"snapshots": [first, third], "bandwidth": 2**18})
    quick, slow = (merge["id"] for merge in removal["merges"])
    vm.api.limit_job(quick, 0)

    def states() -> dict[str, str]:
        return {merge["id"]: merge["state"] for merge in vm.api.removal(removal["id"])["merges"]}

    wait.until("the first merge", lambda: states()[quick] == "done", 60)
    wait.until("the copy of the second", lambda: vm.api.jobs.get(slow)["step"] == "commit", 60)
    vm.api.cancel_removal(removal["id"])
    ended = deaths.end_of(vm, removal["id"])
    assert (ended["state"], ended["reason"]["code"], states()) == (
        "undone",
        "cancelled",
        {quick: "done", slow: "undone"},
    )
    assert sorted(item["state"] for item in vm.api.removal(removal["id"])["items"]) == ["done", "undone"]
    left = {row["id"] for row in vm.api.snapshots.all(vm_id=vm.id)} - {kept}
    again = vm.api.retry_removal(removal["id"])
    assert {item["snapshot_id"] for item in again["items"]} == left < {first, third}
    assert deaths.end_of(vm, again["id"])["state"] == "done"
    assert [row["id"] for row in vm.api.snapshots.all(vm_id=vm.id)] == [kept]
    deaths.assert_whole(vm, snapshots=1)


@pytest.mark.chaos
def test_sixty_layers_collapse_to_one_with_one_request(writing_vm: VmOf) -> None:
    vm = writing_vm()
    taken = take(vm, 60, writes=8)
    assert len(vm.chain()) == 61
    removal = vm.api.remove_snapshots({"filter": {"vm_id": vm.id}, "expected_count": len(taken)})
    assert [merge["layers"] for merge in removal["merges"]] == [60]
    assert deaths.end_of(vm, removal["id"], 180)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)
    # and inside the chain, where libvirt writes a name into the child: 24 layers with grown names would crash QEMU
    taken = take(vm, 31, writes=8)
    removal = vm.api.remove_snapshots({"snapshots": taken[:30]})
    assert [(merge["layers"], merge["kind"]) for merge in removal["merges"]] == [(30, "internal")]
    assert deaths.end_of(vm, removal["id"], 180)["state"] == "done"
    assert backing_names(vm) == [vm.chain()[0]["volume_id"]]
    deaths.assert_whole(vm, snapshots=1)


@pytest.mark.chaos
def test_a_hundred_snapshots_of_twenty_vms_go_with_one_request(world: World, writing_vm: VmOf) -> None:
    """Four of the VMs run and write all the time, sixteen are down; each layer of those holds something of its own."""
    running = [writing_vm(rate_kib=512) for _ in range(4)]
    taken = [one for vm in running for one in take(vm, 5, writes=8)]
    down = [world.machine(f"down-{number}", mib=64) for number in range(16)]
    for vm in down:
        for layer in range(5):
            operations.fill(vm, 0, f"{layer + 1}M 2M")
            taken.append(vm.snapshot(f"layer {layer}"))
    assert len(taken) == 100
    before = [reads(vm) for vm in down]
    plan = world.api.remove_snapshots({"snapshots": taken, "dry_run": True})
    assert [merge["layers"] for merge in plan["merges"]] == [5] * 20
    removal = world.api.remove_snapshots({"snapshots": taken})
    assert deaths.end_of(running[0], removal["id"], 300)["state"] == "done"
    told = world.api.removal(removal["id"])
    assert [item["state"] for item in told["items"]] == ["done"] * 100
    for vm in running:
        deaths.assert_whole(vm, snapshots=0)
    assert [reads(vm) for vm in down] == before
    assert [(len(vm.chain()), len(vm.files())) for vm in down] == [(1, 1)] * 16
    for vm in down:
        world.api.vms.delete(vm.id, world.api.vms.get(vm.id)["version"])


def reads(vm: Machine) -> str:
    """A digest of all that the disk of a VM that is down holds."""
    leaf = vm.folder() / vm.chain()[-1]["volume_id"]
    raw = vm.log.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(leaf), str(raw)], check=True, timeout=60)
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    raw.unlink()
    return digest
