"""Facts about processes, read from /proc."""

import os
import socket
from pathlib import Path

from deploy.stack import wait


def child_of(pid: int) -> int:
    """The pid of the first child; waits up to 20 s for it to appear."""

    def look() -> int | None:
        # an exited parent has no such file: the caller sees that by its Popen
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except FileNotFoundError:
            return pid
        # a zombie without children is a command that ended before we could look
        return int(text.split()[0]) if text.split() else (pid if state(pid) == "Z" else None)

    return wait.until(f"a child of process {pid}", look, 20.0, every=0.005)


def state(pid: int) -> str:
    """One letter as in ps: R, S, D, T, Z; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def command(pid: int) -> str:
    """The short name of what runs, as in ps; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def born(pid: int) -> int:
    """Start time in clock ticks since boot, which with the pid names a process for ever; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def outside(first: int, inner: int) -> int | None:
    """The real pid of process `inner` of the pid namespace that process `first` lives in."""
    space = os.readlink(f"/proc/{first}/ns/pid")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns/pid") == space and _inner(folder) == inner:
                return int(folder.name)
        except OSError:
            continue  # ended while we looked
    return None


def members(first: int) -> list[int]:
    """Real pids of all processes that share the pid namespace of process `first`, zombies left out."""
    space = os.readlink(f"/proc/{first}/ns/pid")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns/pid") == space:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def answers(port: int, greeting: bytes) -> bool:
    """Does 127.0.0.1:port accept a connection (and, with a greeting, say something back within 2 s)?"""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as line:
            if not greeting:
                return True
            line.settimeout(2)
            line.sendall(greeting)
            return bool(line.recv(1))
    except OSError:
        return False


def _inner(folder: Path) -> int:
    for line in (folder / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return 0
