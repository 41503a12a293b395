"""A storage whose disk fails, or has no room although its file system says so: what began is undone with a reason,
nothing is lost, and once the storage is mended the same request is done."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator

import pytest

from deploy.stack import wait
from deploy.world import Machine, World
from tests.system.product import deaths, spoil
from tests.system.product.spoil import MIB, Sick

pytestmark = pytest.mark.lab


@pytest.fixture
def sick(world: World) -> Iterator[Sick]:
    with spoil.sick_storage(world, f"sick-{uuid.uuid4().hex[:6]}", 256) as storage:
        yield storage


@pytest.fixture
def vm(world: World, sick: Sick) -> Iterator[Machine]:
    """Its guest writes in order, so that there is much to copy soon."""
    with started(world, sick, batch=1024) as made:
        yield made


@contextlib.contextmanager
def started(world: World, sick: Sick, **writing: int) -> Iterator[Machine]:
    domain = spoil.domain_on(world, sick.path.name, sick.path)
    in_order = {"mib": 64, "ring_mib": 48, "order": "sequential", **writing}
    made = spoil.machine_on(world, sick, domain["id"], f"on-{sick.path.name}", **in_order)
    made.start()
    yield made
    sick.mend()
    if made.state() != "down":
        made.power_off()


def started_again(vm: Machine) -> None:
    """A guest that met an error stands still until a person lets it go on or restarts it."""
    if vm.state() != "down":
        vm.power_off()
    assert vm.check().ok, vm.check().summary()
    vm.start(check=True)
    assert vm.acks().findings() == []


def crashed(sick: Sick, vm: Machine) -> bool:
    """QEMU 7.2 sometimes ends itself where a commit fails, by a check of its own; any other end is a fault of ours."""
    log = sick.host.folder / "qemu-log" / "qemu" / f"vm-{vm.id}.log"
    return "Unexpected error in bdrv_" in log.read_text(errors="replace")


@pytest.mark.parametrize(
    # chaos: to keep make test within its time, which has the same for an internal layer
    "inside",
    [pytest.param(False, id="active", marks=pytest.mark.chaos), pytest.param(True, id="internal")],
)
def test_a_copy_on_a_failing_disk_is_undone_and_done_once_the_disk_is_mended(
    vm: Machine, sick: Sick, inside: bool
) -> None:
    goes = vm.snapshot("goes")
    vm.wait_for_writes(6144)
    kept = [vm.snapshot("kept")] if inside else []
    job = vm.api.remove_snapshot(goes, bandwidth=MIB)
    wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
    sick.fail()
    vm.wait_for_state("paused", "down")
    sick.mend()
    ended = deaths.end_of(vm, job["id"], 90)
    if crashed(sick, vm):  # its merge went on without it, as far as the storage let it
        assert ended["state"] in ("undone", "done"), ended
    else:
        assert vm.state() == "paused"
        assert (ended["state"], ended["reason"]["code"]) == ("undone", "job_failed"), ended
    started_again(vm)
    if ended["state"] == "undone":
        assert vm.remove(goes)["state"] == "done"
    deaths.assert_whole(vm, snapshots=len(kept))


@contextlib.contextmanager
def patience(world: World, sick: Sick, seconds: float) -> Iterator[None]:
    """The host's agent with less of it."""
    agent = world.stack.agents[sick.host.name]
    before = agent.more

    def again(**more: str) -> None:
        agent.more = {**before, **more}
        agent.stop()
        agent.start()
        wait.until("the host", lambda: {row["state"] for row in world.api.hosts.all()} == {"up"}, 60)

    try:
        again(DRYSTONE_IO_ERROR_SECONDS=str(seconds))
        yield
    finally:
        again()


@pytest.mark.chaos  # to keep make test within its time; the rule is unit hostagent_virt/test_io_pauses.py
def test_a_vm_that_an_io_error_stopped_is_ended_after_a_time_and_one_without_room_is_not(
    world: World, sick: Sick
) -> None:
    """Both gave up their leases. A host whose storage fails may be taken for dead, one whose storage is full not."""
    # so slow that for three quarters of a minute it writes where nothing was before
    with patience(world, sick, 5), started(world, sick, rate_kib=1024, batch=16) as vm:
        vm.wait_for_writes(64)
        sick.fill_below()
        vm.wait_for_state("paused")
        limit = time.monotonic() + 30  # three looks
        while time.monotonic() < limit:
            assert vm.state() == "paused"
            time.sleep(1)
        sick.mend()
        started_again(vm)
        sick.fail()
        vm.wait_for_state("down")
        assert "an I/O error stopped it" in vm.api.vms.get(vm.id)["reason"]
        sick.mend()
        started_again(vm)
        deaths.assert_whole(vm, snapshots=0)


def test_a_copy_onto_a_disk_that_is_full_below_is_undone_and_done_once_there_is_room(vm: Machine, sick: Sick) -> None:
    """Nobody can count this space before: the file system has plenty. Whether the copy or a mark beside it meets the
    full disk first is chance; both are told."""
    goes = vm.snapshot("goes")
    vm.wait_for_writes(2048)
    sick.fill_below()
    ended = deaths.end_of(vm, vm.api.remove_snapshot(goes)["id"], 60)
    sick.mend()
    assert ended["state"] == "undone", ended
    assert ended["reason"]["code"] in ("job_failed", "no_space"), ended
    started_again(vm)
    assert vm.remove(goes)["state"] == "done"
    deaths.assert_whole(vm, snapshots=0)


@pytest.mark.chaos  # likewise: make test has a copy on such a disk
def test_a_snapshot_on_a_disk_that_is_full_below_is_undone_or_done_and_whole(vm: Machine, sick: Sick) -> None:
    vm.wait_for_writes(64)
    sick.fill_below()
    ended = deaths.end_of(vm, vm.api.create_snapshot(vm.id, {"description": "on a full disk"})["id"], 60)
    sick.mend()
    assert ended["state"] == "done" or (ended["state"], ended["reason"]["code"]) == ("undone", "no_space"), ended
    started_again(vm)
    kept = 1 if ended["state"] == "done" else 0
    vm.remove(vm.snapshot("once mended"))
    deaths.assert_whole(vm, snapshots=kept)
