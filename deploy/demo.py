"""`make demo`: merges snapshots under a VM that writes without pause, on real libvirt and QEMU, and proves it.

`make demo KEEP=1` leaves everything running and prints the address and the token; `make down` ends it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from client.errors import ApiError
from deploy.guest.stall import Watch
from deploy.stack.__main__ import LEFT, standing, status
from deploy.stack.stack import Stack
from deploy.stack.wait import NotInTime
from deploy.world import Machine, World

MIB = 2**20
PAUSE = 4.0  # seconds in which the guest writes between two snapshots
out = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    keep = parser.parse_args(words).keep
    if keep and standing():
        out.print("A stack is up already; `make down` ends it.")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stack = Stack(keep=keep, record=LEFT if keep else None)
    done = False
    try:
        done = _run(stack)
    except (ApiError, NotInTime, AssertionError) as fault:
        out.print(f"\n[bold red]The demo failed:[/] {fault}\nLogs: {stack.folder}")
    finally:
        if not keep:
            stack.end(remove=done)
            out.print(
                f"Ended everything{f', removed {stack.folder}' if done else ''}. Nothing of the machine was touched."
            )
    if keep and done:
        status()
        out.print("  try: .venv/bin/drystone vm list     end it: make down")
    return 0 if done else 1


def _run(stack: Stack) -> bool:
    begun = time.monotonic()
    with _told(f"Starting RabbitMQ, three services and one host with libvirt, in {stack.folder}"):
        stack.start()
    with _told("Creating a storage domain and a VM whose guest writes checksummed blocks without pause"):
        world = World.of(stack)
        vm = world.machine("demo", ring_mib=192, batch=32)
        vm.start()
    snapshots = []
    for name in ("monday", "tuesday", "wednesday"):
        with _told(f"Taking snapshot {name!r} while it writes"):
            time.sleep(PAUSE)
            snapshots.append(vm.snapshot(name))
    time.sleep(PAUSE)
    _show_chain(vm, "The chain before")
    middle = _remove(vm, snapshots[1], "Removing 'tuesday', in the middle of the chain")
    newest = _remove(vm, snapshots[2], "Removing 'wednesday', the newest: QEMU pivots to the volume below")
    _show_chain(vm, "The chain after")
    right = _prove(world, vm, snapshots[0])
    _figures(middle, newest)
    out.print(
        f"[bold {'green' if right else 'red'}]{'All is well' if right else 'NOT all is well'}[/], "
        f"{time.monotonic() - begun:.0f} s in all."
    )
    return right


@contextmanager
def _told(sentence: str) -> Iterator[None]:
    """Say what goes on, and how long it took."""
    out.print(f"[bold]•[/] {sentence} … ", end="")
    begun = time.monotonic()
    try:
        yield
    except BaseException:
        out.print("[red]failed[/]")
        raise
    out.print(f"[green]{time.monotonic() - begun:.1f} s[/]")


def _remove(vm: Machine, snapshot_id: str, sentence: str) -> dict[str, Any]:
    """Remove a snapshot with a progress bar; answers the figures."""
    out.print(f"[bold]•[/] {sentence}")
    begun = time.monotonic()
    columns = (TextColumn("    {task.fields[step]:<10}"), BarColumn(30), DownloadColumn(True), TransferSpeedColumn())
    with Watch(vm.log) as watch, Progress(*columns, console=out) as bar:
        task = bar.add_task("", step="plan", total=None)
        job = vm.api.remove_snapshot(snapshot_id)
        for seen in vm.api.watch(job["id"], timeout=120):
            merges = list(vm.api.merges.all(removal_id=job["id"]))
            step = merges[0]["step"] if merges else seen["step"]
            total = seen["progress"]["end"] or None
            bar.update(task, completed=seen["progress"]["cur"], total=total, step=step)
        vm.finish(job["id"])
        seconds = time.monotonic() - begun
    merge = dict(next(iter(vm.api.merges.all(removal_id=job["id"]))))
    return {"merge": merge, "seconds": seconds, "stall": watch.longest_ms(begun), "typical": watch.typical_ms()}


def _show_chain(vm: Machine, title: str) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("volume", "snapshot", "MiB on the storage"):
        table.add_column(column, justify="right" if "MiB" in column else "left")
    facts = vm.api.chain(vm.disks[0])["facts"] or {"storage": {"volumes": []}}
    sizes = {each["volume_id"]: each["actual_size"] for each in facts["storage"]["volumes"]}
    for volume in vm.chain():
        name = "active" if volume["active"] else volume["description"]
        size = sizes.get(volume["volume_id"], volume["actual_size"] or 0)
        table.add_row(volume["volume_id"], name, f"{size / MIB:.1f}")
    out.print(table)


def _prove(world: World, vm: Machine, kept: str) -> bool:
    """Hold the disk against every write that the guest acknowledged; True when all is as it must be."""
    with _told("Letting the guest write on, then switching it off and reading every acknowledged block back"):
        vm.wait_for_writes(2000)
        vm.power_off()
        result = vm.check()
    out.print(f"    {result.summary()}")
    volumes = {volume["volume_id"] for volume in vm.chain()}
    left = vm.files() - volumes
    out.print(f"    files of the disk beside its {len(volumes)} volumes: {', '.join(sorted(left)) or 'none'}")
    names = [snapshot["id"] for snapshot in vm.api.snapshots.all(vm_id=vm.id)]
    with _told("Starting it once more from the merged chain; its guest reads everything back first"):
        vm.start(check=True)
    seen = vm.acks()
    out.print(f"    the guest read {seen.disks[0].read_back} blocks and found {len(seen.findings())} of them wrong")
    whole = _qemu_img_check(vm)
    out.print(f"    qemu-img check of the volumes that nobody writes to: {'no errors' if whole else 'ERRORS'}")
    return (
        result.ok
        and not left
        and names == [kept]
        and seen.disks[0].read_back > 0
        and not seen.findings()
        and whole
        and len(volumes) == 2
    )


def _qemu_img_check(vm: Machine) -> bool:
    first = vm.folder() / vm.chain()[0]["volume_id"]
    done = subprocess.run(["qemu-img", "check", "-U", "-q", str(first)], capture_output=True, timeout=120, check=False)
    return done.returncode == 0


def _figures(middle: dict[str, Any], newest: dict[str, Any]) -> None:
    table = Table(title="The merges", title_justify="left", title_style="bold")
    for column in ("", "internal", "active, with pivot"):
        table.add_column(column)
    both = (middle, newest)
    table.add_row("bytes merged", *(f"{each['merge']['bytes_merged'] / MIB:.1f} MiB" for each in both))
    table.add_row("space given back", *(f"{each['merge']['bytes_returned'] / MIB:.1f} MiB" for each in both))
    table.add_row("time, request to end", *(f"{each['seconds']:.1f} s" for each in both))
    table.add_row("rate", *(f"{each['merge']['bytes_merged'] / MIB / each['seconds']:.0f} MiB/s" for each in both))
    table.add_row("longest guest write stall", *(f"{each['stall']:.0f} ms" for each in both))
    table.add_row("(between two acknowledged writes, else)", *(f"{each['typical']:.0f} ms" for each in both))
    table.add_row("guest's standstill at the pivot", "none", _standstill(newest["merge"]["stall"]))
    out.print(table)


def _standstill(stall: dict[str, float] | None) -> str:
    if stall is None:
        return "unknown"
    parts = ", ".join(f"{name.removesuffix('_ms')} {value:.1f}" for name, value in stall.items())
    return f"{sum(stall.values()):.1f} ms ({parts})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
