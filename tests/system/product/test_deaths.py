"""Whatever dies in a merge: no acknowledged block is lost, nothing is left behind, the VM starts."""

from collections.abc import Callable

import pytest

from deploy.world import Machine, World
from tests.system.product import deaths

pytestmark = pytest.mark.lab
VmOf = Callable[..., Machine]

STEPS = {
    "plan": ("before_ask", "after_ask", "after_settled"),
    "commit": ("before_ask", "after_ask", "after_settled"),
    "pivot": ("before_ask", "after_ask", "after_settled"),
    "record": ("before_ask", "after_ask", "after_settled"),
    "discard": ("before_ask", "after_ask", "after_settled"),
}
SERVICE_POINTS = [f"merge.{step}.{when}" for step, whens in STEPS.items() for when in whens]
PIVOT_POINTS = ["after_journal", "after_suspend", "after_ask", "after_pivot", "after_mark", "after_resume"]
AGENT_POINTS = ["commit.before_ask", "commit.after_begin", *(f"pivot.{when}" for when in PIVOT_POINTS)]
QUICK = {"merge.commit.after_ask", "merge.pivot.after_ask", "pivot.after_pivot"}


def some(points: list[str]) -> list[object]:
    """The rest of the walk belongs to `make chaos`."""
    return [pytest.param(point, marks=() if point in QUICK else pytest.mark.chaos) for point in points]


@pytest.mark.parametrize("point", some(SERVICE_POINTS))
def test_the_service_dies_at_a_crash_point(world: World, writing_vm: VmOf, point: str) -> None:
    vm = writing_vm()
    vm.snapshot("kept")
    snapshot = vm.snapshot("goes")
    ended = deaths.remove_with_crash(world, vm, snapshot, "snapshots", point)
    assert ended["state"] == "done", ended
    deaths.assert_whole(vm, snapshots=1)


@pytest.mark.parametrize("point", some(AGENT_POINTS))
def test_the_agent_dies_at_a_crash_point(world: World, writing_vm: VmOf, point: str) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    ended = deaths.remove_with_crash(world, vm, snapshot, "h1.agent", point)
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.parametrize("delay", [0.05, pytest.param(0.3, marks=pytest.mark.chaos)])
def test_the_broker_dies_in_a_merge(world: World, writing_vm: VmOf, delay: float) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    vm.wait_for_writes(1024)

    def hurt() -> None:
        world.stack.kill("rabbitmq")
        world.stack.start_part("rabbitmq")

    ended = deaths.remove_while(vm, snapshot, deaths.after(delay, hurt))
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.parametrize(
    "delay", [0.2, *(pytest.param(each, marks=pytest.mark.chaos) for each in (0.0, 0.1, 0.4, 0.8))]
)
def test_qemu_dies_in_a_merge(world: World, writing_vm: VmOf, delay: float) -> None:
    vm = writing_vm(ring_mib=64, rate_kib=0)
    snapshot = vm.snapshot("goes")
    vm.wait_for_writes(4096)
    host = world.stack.hosts["h1"]
    name = world.api.vms.get(vm.id)["name"]

    def hurt() -> None:
        host.run("kill", "-9", (host.folder / f"run/qemu/{name}.pid").read_text().strip(), check=False)

    ended = deaths.remove_while(vm, snapshot, deaths.after(delay, hurt))
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.parametrize(
    "delay", [0.1, *(pytest.param(each, marks=pytest.mark.chaos) for each in (0.0, 0.2, 0.4, 0.8))]
)
def test_libvirtd_dies_in_a_merge(world: World, writing_vm: VmOf, delay: float) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    vm.wait_for_writes(1024)

    def hurt() -> None:
        world.stack.kill("h1.libvirtd")
        world.stack.start_part("h1.libvirtd")

    ended = deaths.remove_while(vm, snapshot, deaths.after(delay, hurt))
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


def test_a_frozen_owner_wakes_up_harmless(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm(ring_mib=64, rate_kib=0)
    snapshot = vm.snapshot("goes")
    vm.wait_for_writes(4096)
    job = vm.api.remove_snapshot(snapshot, bandwidth=8 * 2**20)
    world.stack.freeze("snapshots")
    second = world.stack.another("snapshots", "snapshots-2")
    second.start()
    try:
        ended = deaths.end_of(vm, job["id"])
        world.stack.cont("snapshots")
        assert ended["state"] == "done"
        deaths.assert_whole(vm, snapshots=0)
    finally:
        second.stop()
        del world.stack.services["snapshots-2"]
