"""Whatever dies in a merge: no acknowledged block is lost, nothing is left behind, the VM starts."""

import contextlib
import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.stack import proc, wait
from deploy.stack.host import Host
from deploy.stack.postgres import Postgres
from deploy.stack.stack import Stack
from deploy.world import Machine, World
from tests.system.product import deaths
from tests.system.product.conftest import furnished

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
COMMIT_POINTS = ["commit.before_ask", "commit.after_ask", "commit.after_begin"]
AGENT_POINTS = [
    *COMMIT_POINTS,
    *(f"pivot.{when}" for when in PIVOT_POINTS),
    "record.after_ask",
    "discard.after_ask",
    "volume.discard.renamed.data",
    "volume.discard.removed.data",
]
SNAPSHOT_POINTS = [
    *(
        ("snapshots", f"snapshot.{step}.{when}")
        for step in ("plan", "switch", "record")
        for when in ("before_ask", "after_ask", "after_settled")
    ),
    *(("h1.agent", f"switch.{when}") for when in ("before_ask", "after_create")),
]
QUICK = {"merge.commit.after_ask", "merge.pivot.after_ask", "pivot.after_pivot"}


def chaos(*values: object) -> list[object]:
    """These belong to `make chaos`."""
    return [pytest.param(value, marks=pytest.mark.chaos) for value in values]


def some(points: list[str]) -> list[object]:
    quick = [point for point in points if point in QUICK]
    return [*quick, *chaos(*(point for point in points if point not in QUICK))]


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


@pytest.mark.chaos
@pytest.mark.parametrize(("part", "point"), SNAPSHOT_POINTS)
def test_a_new_snapshot_survives_a_crash_point(world: World, writing_vm: VmOf, part: str, point: str) -> None:
    vm = writing_vm()
    ended = deaths.snapshot_with_crash(world, vm, part, point)
    assert ended["state"] == "done", ended
    deaths.assert_whole(vm, snapshots=1)
    assert vm.remove(ended["snapshot_id"])["state"] == "done"


@pytest.mark.chaos
@pytest.mark.parametrize("point", [f"pivot.{when}" for when in PIVOT_POINTS])
def test_qemu_dies_while_the_agent_is_dead_in_the_pivot(world: World, writing_vm: VmOf, point: str) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    ended = deaths.remove_with_crash(world, vm, snapshot, "h1.agent", point, also=qemu_killer(world, vm))
    vm.wait_for_state("down")
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.chaos
@pytest.mark.parametrize("point", [f"pivot.{when}" for when in PIVOT_POINTS])
def test_libvirtd_dies_while_the_agent_is_dead_in_the_pivot(world: World, writing_vm: VmOf, point: str) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    ended = deaths.remove_with_crash(world, vm, snapshot, "h1.agent", point, also=lambda: again(world, "h1.libvirtd"))
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


# The guest stands still for about 25 ms from the ask on. A busy machine may kill too late: then once more.
SURELY_AMIDST, TRIES = 0.005, 3


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.015, *chaos(0.01, 0.02, 0.03, 0.04, 0.05)])
def test_libvirtd_dies_in_the_pivot_after_it_was_asked_for_it(world: World, writing_vm: VmOf, delay: float) -> None:
    vm, host = writing_vm(), world.stack.hosts["h1"]
    for _ in range(TRIES):
        snapshot = vm.snapshot("goes")
        ended, amidst = deaths.remove_and_hurt_after_ask(world, vm, snapshot, libvirtd_killer(host), delay)
        deaths.assert_undone_and_repeat(vm, ended, snapshot)
        if amidst or delay > SURELY_AMIDST:
            break
    assert amidst or delay > SURELY_AMIDST
    vm.wait_for_writes(64)
    vm.power_off()
    # seen: libvirtd 9.0 was gone after the power-off of a VM whose pivot it had missed; systemd would start it again
    host.start_libvirtd()
    world.wait_for_host(host.id)
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.chaos
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.015, 0.02, 0.03])
def test_qemu_dies_in_the_pivot_after_it_was_asked_for_it(world: World, writing_vm: VmOf, delay: float) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    ended, _ = deaths.remove_and_hurt_after_ask(world, vm, snapshot, qemu_killer(world, vm), delay)
    vm.wait_for_state("down")
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


def test_qemu_dies_while_it_copies(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    ended = deaths.remove_while_copying(vm, snapshot, qemu_killer(world, vm))
    assert ended["state"] == "done", ended  # it went on offline
    vm.wait_for_state("down")
    deaths.assert_whole(vm, snapshots=0)


PARTS = ["rabbitmq", "snapshots", "inventory", "gateway", "h1.agent", "h1.libvirtd"]


@pytest.mark.parametrize("part", ["rabbitmq", *chaos(*PARTS[1:])])
def test_a_part_dies_while_it_copies(world: World, writing_vm: VmOf, part: str) -> None:
    """None of them carries the copy: the removal is done without being asked for again."""
    vm = writing_vm()
    snapshot = vm.snapshot("goes")
    ended = deaths.remove_while_copying(vm, snapshot, lambda: again(world, part))
    assert ended["state"] == "done", ended
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.chaos
def test_the_host_loses_its_power_in_a_merge(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")

    def hurt() -> None:
        again(world, "h1")
        world.stack.start_part("h1.agent")

    ended = deaths.remove_while_copying(vm, snapshot, hurt)
    vm.wait_for_state("down")
    deaths.assert_undone_and_repeat(vm, ended, snapshot)
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.chaos
def test_a_frozen_owner_wakes_up_harmless(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    snapshot = vm.snapshot("goes")

    def hurt() -> None:
        frozen_at_rest(world, "snapshots")
        second.start()

    second = world.stack.another("snapshots", "snapshots-2")
    try:
        ended = deaths.remove_while_copying(vm, snapshot, hurt)
        world.stack.cont("snapshots")
        assert ended["state"] == "done"
        deaths.assert_whole(vm, snapshots=0)
    finally:
        world.stack.cont("snapshots")
        second.stop()
        del world.stack.services["snapshots-2"]


def frozen_at_rest(world: World, name: str) -> None:
    """Stopped outside a transaction: within one it would keep all others from the one file that SQLite is."""
    file = world.stack.folder / name / f"{name}.sqlite"

    def frozen() -> bool:
        world.stack.freeze(name)
        with contextlib.closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as beside:
            try:
                beside.execute("begin immediate")
            except sqlite3.OperationalError:
                world.stack.cont(name)
                return False
            beside.execute("rollback")
            return True

    wait.until("a moment outside a transaction", frozen, 20)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres(Path(tempfile.mkdtemp(prefix="ds-pg-")))
    server.start()
    yield server
    server.end()
    shutil.rmtree(server.folder)


@pytest.fixture(scope="module")
def world_on_postgres(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[World]:
    names = ("inventory", "snapshots")
    for name in names:
        postgres.sql(f"create database {name}")
    yield from furnished(request, Stack(databases={name: postgres.url(name) for name in names}))


@pytest.mark.chaos
def test_postgresql_dies_in_a_merge(world_on_postgres: World, postgres: Postgres) -> None:
    vm = world_on_postgres.machine("on-postgres", ring_mib=16, rate_kib=4096)
    vm.start()
    snapshot, second = vm.snapshot("goes"), vm.snapshot("goes too")

    def hurt() -> None:
        postgres.kill()
        postgres.start()

    ended = deaths.remove_while_copying(vm, snapshot, hurt)
    assert ended["state"] == "done", ended
    ended = deaths.remove_with_crash(world_on_postgres, vm, second, "snapshots", "merge.pivot.after_ask")
    assert ended["state"] == "done", ended
    deaths.assert_whole(vm, snapshots=0)


def again(world: World, part: str) -> None:
    world.stack.kill(part)
    world.stack.start_part(part)


def libvirtd_killer(host: Host) -> Callable[[], None]:
    """Kills the libvirtd that the host has now, and starts it again."""
    pid = host.libvirtd_pid()

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        wait.until("the end of libvirtd", lambda: proc.state(pid) in ("", "Z"), 10, every=0.001)
        host.start_libvirtd()

    return kill


def qemu_killer(world: World, vm: Machine) -> Callable[[], None]:
    """Kills the QEMU that the VM has now."""
    pid = world.stack.hosts["h1"].qemu_pid(f"vm-{vm.id}")
    return lambda: os.kill(pid, signal.SIGKILL)
