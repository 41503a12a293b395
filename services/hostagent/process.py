"""The QEMU process of a VM, from /proc: the first thing to believe."""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass

_NAME = b"qemu"


@dataclass(frozen=True)
class Process:
    """`started` is in clock ticks since boot: with the pid it names one process for ever."""

    pid: int
    started: int
    vm_id: str
    arguments: tuple[str, ...]

    def alive(self) -> bool:
        return started(self.pid) == self.started


def find(vm_id: str) -> Process | None:
    """The living QEMU with this domain UUID (a zombie has no command line and does not count)."""
    return everyone().get(vm_id)


def everyone() -> dict[str, Process]:
    """Every living QEMU with a UUID, by that."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = _look(int(name))
            if process is not None:
                found[process.vm_id] = process
    return found


def started(pid: int) -> int | None:
    """The start time in ticks, None if the process is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name in brackets may hold anything: fields are counted from behind it
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if words[0] in (b"Z", b"X") else int(words[19])


def _look(pid: int) -> Process | None:
    with contextlib.suppress(OSError):
        # comm first: it is cheap for the many that are no QEMU (kernel threads have no command line at all)
        with open(f"/proc/{pid}/comm", "rb") as file:
            if not file.read().startswith(_NAME):
                return None
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = tuple(os.fsdecode(word) for word in file.read().split(b"\0"))
        since = started(pid)
        vm_id = _option(arguments, "-uuid")
        if since is not None and vm_id:
            return Process(pid, since, vm_id.lower(), arguments)
    return None


def _option(arguments: tuple[str, ...], name: str) -> str | None:
    for word, value in itertools.pairwise(arguments):
        if word == name:
            return value
    return None
