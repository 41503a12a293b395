"""A merge through Drystone beside `virsh blockcommit --wait --pivot` on an equal chain, on the same host and storage.

Time and rate on an idle guest for an empty top and for one of 4 GiB; the longest guest write stall on a busy one.
Both end in the same state: merged, the guest on base, the old top deleted for good (ext4 tells the disk below of the
freed space first, which can take seconds). Ours is all of it, from the HTTP request until the removal is done, with
scans and metadata; the plain side is virsh, then rm and a sync of the folder. A disk that others use too comes and
goes by half within minutes, so all but the empty merge is also measured on a disk in memory.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench import memory
from bench.flow import Flow
from bench.lines import Above, Bound, Line, Ratio, in_turns
from deploy.guest import image, plain
from deploy.guest.stall import Watch
from deploy.stack import wait
from deploy.stack.stack import Stack
from deploy.world import Machine, World
from services.hostagent import files

GIB = 2**30
SIZE_MIB = 4608
BUSY = {"ring_mib": 64, "batch": 16, "rate_kib": 4096}
STALL_MIB = 256
ADDED = Above(1.0)  # seconds on top of QEMU's own time
RATE = Ratio(1 / 0.95)  # of virsh's rate at least 0.95
MEMORY_GIB = 11  # both layers of 4 GiB, and what belongs to them


def run() -> Iterator[Line]:
    with Stack() as stack:
        world = World.of(stack)
        plain_folder = stack.folder / "plain"
        plain_folder.mkdir()
        yield _idle(world, plain_folder, "merge of 0 bytes", 0, rounds=5, wanted=ADDED)
        yield _busy(world, plain_folder, "longest guest write stall in a merge", rounds=9)
        yield _idle(world, plain_folder, "merge of 4 GiB", 4, rounds=3, wanted=RATE)
    with memory.disk(MEMORY_GIB) as folder, Stack(folder=folder / "stack") as stack:
        world = World.of(stack)
        plain_folder = stack.folder / "plain"
        plain_folder.mkdir()
        copying = Line("merge of 4 GiB in memory: while bytes flow", "s", wanted=RATE)
        whole = "merge of 4 GiB in memory, all of it"
        yield _idle(world, plain_folder, whole, 4, rounds=5, wanted=ADDED, copying=copying)
        yield copying
        yield _busy(world, plain_folder, "longest guest write stall, in memory", rounds=9)


# -- time on an idle guest --------------------------------------------------------------------------------


def _idle(
    world: World, folder: Path, name: str, gib: int, *, rounds: int, wanted: Bound, copying: Line | None = None
) -> Line:
    """Fills `copying`, if it is given, with how long bytes flowed into base, seen from outside on both sides alike."""
    number = iter(range(100))
    line, ours, plain_ = Line(name, "s", wanted=wanted), list[float](), list[float]()
    in_turns(
        line,
        lambda: _ours(world, f"ours{gib}-{next(number)}", gib, ours),
        lambda: _virsh(world, folder / f"virsh{gib}-{next(number)}", gib, plain_),
        rounds,
    )
    if copying is not None:
        copying.ours, copying.plain = ours[1:], plain_[1:]  # the first of each does not count
    return line


def _ours(world: World, name: str, gib: int, flows: list[float]) -> float:
    vm = world.machine(name, mib=SIZE_MIB, write=False)
    snapshot = vm.snapshot("below")
    base, top = (vm.folder() / layer["volume_id"] for layer in vm.chain())
    fill(top, gib)
    world.api.start_vm(vm.id)
    vm.wait_for_state("running")
    wait_for_guest(vm.log)
    with Flow(base, flows):
        begun = time.perf_counter()
        job = world.api.remove_snapshot(snapshot)
        # the end of a short one is seen at once; 50 looks a second cost a long one a fifth of its rate on two cores
        every = 0.25 if gib else 0.02
        wait.until("the merge", lambda: world.api.jobs.get(job["id"])["state"] != "running", 300, every=every)
        took = time.perf_counter() - begun
    vm.finish(job["id"])
    forget(world, vm)
    return took


def _virsh(world: World, folder: Path, gib: int, flows: list[float]) -> float:
    top, log = plain_chain(folder, SIZE_MIB), folder / "console"
    fill(top, gib)
    with plain_vm(world, folder, top, log, write=False):
        wait_for_guest(log)
        with Flow(folder / "base.qcow2", flows):
            begun = time.perf_counter()
            blockcommit(world, folder.name)
            top.unlink()
            files.sync_folder(str(folder))
            took = time.perf_counter() - begun
    shutil.rmtree(folder)
    return took


# -- stall of a busy guest --------------------------------------------------------------------------------


def _busy(world: World, folder: Path, name: str, rounds: int) -> Line:
    stall = Line(name, "ms")
    merges: list[dict[str, float]] = []
    number = iter(range(100))
    in_turns(
        stall,
        lambda: _our_stall(world, f"busy-{next(number)}", merges),
        lambda: _virsh_stall(world, folder / f"busy-virsh-{next(number)}"),
        rounds,
    )
    parts = {name: sorted(each[name] for each in merges)[len(merges) // 2] for name in merges[0]}
    shown = ", ".join(f"{name.removesuffix('_ms')} {value:.1f}" for name, value in parts.items())
    above = parts["suspend_ms"] + parts["mark_ms"] + parts["resume_ms"]
    stall.wanted = Above(above)  # virsh's own, and suspend, one durable write and resume
    stall.note = f"our pause in ms: {shown}"
    return stall


def _our_stall(world: World, name: str, merges: list[dict[str, float]]) -> float:
    vm = world.machine(name, mib=STALL_MIB, **BUSY)
    vm.start()
    snapshot = vm.snapshot("below")
    vm.wait_for_writes(2000)
    with Watch(vm.log) as watch:
        job = vm.remove(snapshot)
        vm.wait_for_writes(50)
    merges.append(dict(next(iter(world.api.merges.all(removal_id=job["id"])))["stall"] or {}))
    forget(world, vm)
    return watch.longest_ms()


def _virsh_stall(world: World, folder: Path) -> float:
    top, log = plain_chain(folder, STALL_MIB), folder / "console"
    with plain_vm(world, folder, top, log, **BUSY):
        _wait_for_acks(log, 2000)
        with Watch(log) as watch:
            blockcommit(world, folder.name)
            _wait_for_acks(log, _acks(log) + 50)
    shutil.rmtree(folder)
    return watch.longest_ms()


# -- the plain side ---------------------------------------------------------------------------------------


class plain_vm:
    """A transient VM of plain libvirt on the same host; destroyed at the end."""

    def __init__(self, world: World, folder: Path, top: Path, log: Path, **guest: object) -> None:
        self._host = next(iter(world.stack.hosts.values()))
        self._name = folder.name
        definition = folder / "domain.xml"
        words = image.cmdline(**guest)  # type: ignore[arg-type]  # checked where it is called
        definition.write_text(plain.xml(folder.name, [top], log, world.guest, words))
        self._definition = definition

    def __enter__(self) -> None:
        self._host.virsh("create", self._definition)

    def __exit__(self, *_: object) -> None:
        self._host.virsh("destroy", self._name)


def plain_chain(folder: Path, mib: int) -> Path:
    folder.mkdir()
    base = plain.volume(folder / "base.qcow2", mib)
    return plain.volume(folder / "top.qcow2", mib, base.name)


def blockcommit(world: World, name: str) -> None:
    next(iter(world.stack.hosts.values())).virsh(
        "blockcommit", name, "vda", "--active", "--wait", "--pivot", seconds=300
    )


# -- both -------------------------------------------------------------------------------------------------


def fill(volume: Path, gib: int) -> None:
    """Write so many GiB into a volume that nobody uses, and let the storage have them."""
    words = [word for piece in range(gib) for word in ("-c", f"write -q -P {piece + 1} {piece}G 1G")]
    if words:
        subprocess.run(["qemu-io", "-f", "qcow2", "-t", "none", *words, str(volume)], check=True, timeout=300)
    subprocess.run(["sync", "-f", str(volume)], check=True, timeout=120)


def wait_for_guest(log: Path) -> None:
    wait.until("the guest to come up", lambda: log.exists() and b"@up" in log.read_bytes(), 60)
    time.sleep(1)


def _acks(log: Path) -> int:
    return log.read_bytes().count(b"@a ") if log.exists() else 0


def _wait_for_acks(log: Path, count: int) -> None:
    wait.until("the guest's writes", lambda: _acks(log) * BUSY["batch"] >= count, 90)


def forget(world: World, vm: Machine) -> None:
    vm.power_off()
    world.api.vms.delete(vm.id, world.api.vms.get(vm.id)["version"])
