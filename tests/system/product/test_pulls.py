"""A snapshot that holds far less than the active volume is pulled up into it, and whatever dies, nothing is lost."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.stack import wait
from deploy.stack.stack import Stack
from deploy.world import Machine, World
from tests.chaos import operations
from tests.system.product import deaths, test_templates
from tests.system.product.conftest import furnished
from tests.system.product.test_deaths import qemu_killer

pytestmark = pytest.mark.lab
VmOf = Callable[..., Machine]
MIB = 2**20
SETTINGS = {"DRYSTONE_PULLS": "true", "DRYSTONE_PULL_SAVES": str(32 * MIB)}

POINTS = [
    ("snapshots", "merge.commit.after_ask"),
    ("snapshots", "merge.record.before_ask"),
    ("snapshots", "merge.discard.after_ask"),
    ("h1.agent", "commit.after_ask"),
    ("h1.agent", "record.before_flush"),
    ("h1.agent", "volume.pull.after_mark"),
    ("h1.agent", "volume.pull.after_top"),
    ("h1.agent", "volume.discard.renamed.data"),
]


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """One that pulls for less than the usual 256 MiB."""
    yield from furnished(request, Stack(settings=SETTINGS))


def under_a_large_one(vm: Machine, snapshots: int = 1) -> list[str]:
    """Snapshots of little, the first with 16 MiB that no other volume has, and an active volume of 160 MiB; all that
    behind what the guest writes."""
    fill(vm, "32M 16M")
    taken = []
    for number in range(snapshots):
        vm.wait_for_writes(64)
        taken.append(vm.snapshot(f"number {number}"))
    fill(vm, "64M 160M")
    return taken


def fill(vm: Machine, where: str) -> None:
    """Write into the active volume while the VM is down."""
    vm.power_off()
    operations.fill(vm, 0, where)
    vm.start()


def directions(vm: Machine, job: dict[str, Any]) -> list[str]:
    return [str(merge["kind"]) for merge in vm.api.merges.all(removal_id=job["id"])]


def test_a_small_snapshot_goes_up_and_the_active_volume_stays(writing_vm: VmOf) -> None:
    vm = writing_vm()
    kept, goes = under_a_large_one(vm, 2)
    leaf = vm.chain()[-1]["volume_id"]
    job = vm.remove(goes)
    assert directions(vm, job) == ["pull"]
    assert vm.chain()[-1]["volume_id"] == leaf
    vm.wait_for_writes(64)
    assert directions(vm, vm.remove(kept)) == ["pull"]
    assert [one["volume_id"] for one in vm.chain()] == [leaf]
    deaths.assert_whole(vm, snapshots=0)


def test_a_qemu_that_dies_while_it_pulls_loses_nothing(world: World, writing_vm: VmOf) -> None:
    """It goes on offline, the same way."""
    vm = writing_vm()
    (goes,) = under_a_large_one(vm)
    ended = deaths.remove_while_copying(vm, goes, qemu_killer(world, vm))
    assert ended["state"] == "done", ended
    assert directions(vm, ended) == ["pull"]
    deaths.assert_whole(vm, snapshots=0)


def test_what_is_small_goes_up_while_the_vm_is_down(writing_vm: VmOf) -> None:
    """Inside the chain first, then the rest in one job."""
    vm = writing_vm()
    first, second = under_a_large_one(vm, 2)
    newest = vm.snapshot("newest")
    vm.power_off()
    chain = [one["volume_id"] for one in vm.chain()]
    assert directions(vm, vm.remove(second)) == ["pull"]
    assert [one["volume_id"] for one in vm.chain()] == [chain[0], *chain[2:]]
    vm.start(check=True)
    vm.power_off()
    job = vm.api.remove_snapshots({"snapshots": [first, newest]})
    assert deaths.end_of(vm, job["id"])["state"] == "done"
    assert len(vm.chain()) == len(vm.files(0)) == 1
    vm.start(check=True)
    deaths.assert_whole(vm, snapshots=0)


def test_a_pull_that_was_cancelled_leaves_a_chain_that_starts(writing_vm: VmOf) -> None:
    vm = writing_vm()
    (goes,) = under_a_large_one(vm)
    job = vm.api.remove_snapshot(goes, bandwidth=MIB)
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
    vm.api.cancel_job(job["id"])
    assert deaths.end_of(vm, job["id"])["state"] == "undone"
    vm.power_off()
    vm.start(check=True)
    assert directions(vm, vm.remove(goes)) == ["pull"]
    deaths.assert_whole(vm, snapshots=0)


def test_a_thin_vm_is_pulled_onto_its_template(world: World, writing_vm: VmOf) -> None:
    origin = writing_vm()
    origin.wait_for_writes(64)
    origin.power_off()
    template = test_templates.template_of(world, origin, "ground")
    base = test_templates.Base(origin, template)
    vm = test_templates.vm_from(world, origin, template, "thin", "thin")
    vm.start(check=True)
    (goes,) = under_a_large_one(vm)
    leaf = vm.chain()[-1]["volume_id"]
    assert directions(vm, vm.remove(goes)) == ["pull"]
    assert [one["volume_id"] for one in vm.chain()] == [leaf]
    test_templates.assert_whole(vm, 0, base)
    base.assert_unchanged()
    vm.power_off()
    world.api.vms.delete(vm.id, world.api.vms.get(vm.id)["version"])
    world.api.templates.delete(template["id"], world.api.templates.get(template["id"])["version"])


@pytest.mark.chaos
@pytest.mark.parametrize(("part", "point"), POINTS)
@pytest.mark.parametrize("also", ["", "and QEMU"])
def test_a_pull_survives(world: World, writing_vm: VmOf, part: str, point: str, also: str) -> None:
    vm = writing_vm()
    (goes,) = under_a_large_one(vm)
    hurt = qemu_killer(world, vm) if also else None
    ended = deaths.remove_with_crash(world, vm, goes, part, point, also=hurt)
    deaths.assert_undone_and_repeat(vm, ended, goes)
    deaths.assert_whole(vm, snapshots=0)
