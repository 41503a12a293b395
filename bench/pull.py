"""A layer of 100 MiB under an active one of 4 GiB, removed through Drystone, which pulls it up, beside a plain commit.

On a disk in memory, an idle guest, both sides to the same durable end as in merge.py: the plain side is `virsh
blockcommit --active --wait --pivot`, rm of the old top and a sync of its folder; with the VM down `qemu-img commit`.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench import memory, merge
from bench.lines import Line, Ratio, in_turns
from deploy.stack import wait
from deploy.stack.stack import Stack
from deploy.world import World
from services.hostagent import files

BASE_MIB, TOP_GIB = 100, 4


def run() -> Iterator[Line]:
    with (
        memory.disk(merge.MEMORY_GIB) as folder,
        Stack(folder=folder / "stack", settings={"DRYSTONE_PULLS": "true"}) as stack,
    ):
        world, number = World.of(stack), iter(range(100))
        plain_folder = stack.folder / "plain"
        plain_folder.mkdir()
        yield in_turns(
            Line(f"removal of {BASE_MIB} MiB under {TOP_GIB} GiB, in memory", "s", wanted=Ratio(0.25)),
            lambda: _ours(world, f"pull-{next(number)}"),
            lambda: _virsh(world, plain_folder / f"commit-{next(number)}"),
            rounds=3,
        )
        yield in_turns(
            Line(f"the same of a VM that is down: {BASE_MIB} MiB under {TOP_GIB} GiB", "s", wanted=Ratio(0.5)),
            lambda: _ours(world, f"down-{next(number)}", runs=False),
            lambda: _qemu_img(plain_folder / f"down-{next(number)}"),
            rounds=3,
        )


def _ours(world: World, name: str, *, runs: bool = True) -> float:
    vm = world.machine(name, mib=merge.SIZE_MIB, write=False)
    snapshot = vm.snapshot("below")
    base, top = (vm.folder() / layer["volume_id"] for layer in vm.chain())
    _fill(base, top)
    if runs:
        world.api.start_vm(vm.id)
        vm.wait_for_state("running")
        merge.wait_for_guest(vm.log)
    begun = time.perf_counter()
    job = world.api.remove_snapshot(snapshot)
    wait.until("the pull", lambda: world.api.jobs.get(job["id"])["state"] != "running", 300, every=0.02)
    took = time.perf_counter() - begun
    vm.finish(job["id"])
    (done,) = world.api.merges.all(removal_id=job["id"])
    if done["kind"] != "pull":
        raise AssertionError(f"it was not pulled: {done}")
    merge.forget(world, vm)
    return took


def _virsh(world: World, folder: Path) -> float:
    top, log = merge.plain_chain(folder, merge.SIZE_MIB), folder / "console"
    _fill(folder / "base.qcow2", top)
    with merge.plain_vm(world, folder, top, log, write=False):
        merge.wait_for_guest(log)
        begun = time.perf_counter()
        merge.blockcommit(world, folder.name)
        top.unlink()
        files.sync_folder(str(folder))
        took = time.perf_counter() - begun
    shutil.rmtree(folder)
    return took


def _qemu_img(folder: Path) -> float:
    top = merge.plain_chain(folder, merge.SIZE_MIB)
    _fill(folder / "base.qcow2", top)
    begun = time.perf_counter()
    words = ["qemu-img", "commit", "-q", "-d", "-f", "qcow2", "-b", str(folder / "base.qcow2"), str(top)]
    subprocess.run(words, check=True, timeout=300)
    files.sync(str(folder / "base.qcow2"))
    top.unlink()
    files.sync_folder(str(folder))
    took = time.perf_counter() - begun
    shutil.rmtree(folder)
    return took


def _fill(base: Path, top: Path) -> None:
    """What base holds, top does not."""
    words = ["-c", f"write -q -P 77 {TOP_GIB}G {BASE_MIB}M"]
    subprocess.run(["qemu-io", "-f", "qcow2", "-t", "none", *words, str(base)], check=True, timeout=60)
    merge.fill(top, TOP_GIB)
