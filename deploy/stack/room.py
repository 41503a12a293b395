"""A room: pid, mount and UTS namespaces of its own, so that what is started in it can't outlive it.

Real pids (those of the machine) are used everywhere outside; files written inside a room name the room's own pids,
`Room.outside` translates.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from deploy.stack import proc, wait

FIRST = Path(__file__).with_name("first.py")
ENTER = Path(__file__).with_name("enter.py")
Command = Sequence[str | Path]


class RoomGone(Exception):
    """Something was asked of a room that is not running."""


@dataclass
class Running:
    """A process inside a room: `pid` is the real one, `door` the enter.py that waits for it."""

    pid: int
    door: subprocess.Popen[bytes]

    def alive(self) -> bool:
        return self.door.poll() is None and proc.state(self.pid) not in ("", "Z")

    def signal(self, number: int) -> None:
        if self.alive():
            os.kill(self.pid, number)

    def end(self, seconds: float = 10.0) -> int:
        """SIGTERM, and SIGKILL when that did not help in time; returns the exit status."""
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
            self.signal(signal.SIGCONT)  # a stopped process would not notice
        try:
            return self.door.wait(seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return self.door.wait(10)


@dataclass
class Room:
    """Start processes in it with `spawn` and `run`; `end` kills all of them at once, as a power cut would.

    A room also ends when the process that made it ends, whatever the reason, unless it was made with keep=True.
    """

    name: str
    folder: Path
    binds: Mapping[Path, str] = field(default_factory=dict)
    memory: tuple[str, ...] = ()  # folders that are empty at every start and gone with the room
    hostname: str = ""
    keep: bool = False
    pid: int = 0
    _outer: subprocess.Popen[bytes] | None = None
    _doors: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Open the room; its folders must exist."""
        order = {
            "binds": [[str(source), target] for source, target in self.binds.items()],
            "memory": self.memory,
            "hostname": self.hostname,
            "keep": self.keep,
        }
        argv = ["unshare", "--pid", "--mount", "--uts", "--fork", "--kill-child=SIGKILL", "--propagation", "private"]
        argv += ["/usr/bin/python3", "-I", "-S", str(FIRST), json.dumps(order)]
        leash = subprocess.DEVNULL if self.keep else subprocess.PIPE
        with self._log("room").open("ab") as log:
            self._outer = subprocess.Popen(
                argv, stdin=leash, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self._outer.stdout is not None  # noqa: S101  for mypy: we asked for a pipe
        if self._outer.stdout.readline() != b"ready\n":
            raise RoomGone(f"room {self.name} did not open: see {self._log('room')}")
        self._outer.stdout.close()
        self.pid = proc.child_of(self._outer.pid)

    def alive(self) -> bool:
        return self._outer is not None and self._outer.poll() is None

    def end(self) -> None:
        """Kill everything inside and wait until it is gone. Ending an ended room is fine."""
        if self._outer is None:
            return
        if self.alive():
            with contextlib.suppress(ProcessLookupError):  # somebody else ends it too
                os.kill(self.pid, signal.SIGKILL)
        for door in self._doors:
            door.wait(30)
        self._outer.wait(30)
        self._doors.clear()
        if self._outer.stdin is not None:
            self._outer.stdin.close()
        self._outer = None

    def enter(self) -> list[str]:
        """The words to put before a command so that it runs inside."""
        if not self.alive():
            raise RoomGone(f"room {self.name} is not running")
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "-u"]

    def spawn(self, name: str, argv: Command, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Running:
        """Start a long-lived process; what it prints is appended to `<folder>/log/<name>.log`."""
        with self._log(name).open("ab") as log:
            door = self._popen(argv, env, cwd, log)
        self._doors.append(door)
        # its only child is the process itself
        return Running(proc.child_of(door.pid), door)

    def run(
        self, argv: Command, env: Mapping[str, str] | None = None, seconds: float = 60.0, check: bool = True
    ) -> str:
        """Run a short command inside and return what it printed; CalledProcessError with its stderr when it fails."""
        words = [*self.enter(), "--", *map(str, argv)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=seconds, check=False)
        if check and done.returncode != 0:
            error = subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
            error.add_note(done.stderr.strip())
            raise error
        return done.stdout

    def outside(self, inner: int) -> int | None:
        """The real pid of the process that the room itself calls `inner`; None when it is not there."""
        return proc.outside(self.pid, inner)

    def inside(self, path: str) -> Path:
        """Where what the room calls `path` is seen from outside, as long as the room runs."""
        return Path(f"/proc/{self.pid}/root{path}")

    def members(self) -> list[int]:
        """Real pids of all that runs inside, the first process left out."""
        return [pid for pid in proc.members(self.pid) if pid != self.pid] if self.alive() else []

    def name_for_ever(self) -> dict[str, int | str]:
        """Name, pid and birth of the first process: who has this can end the room later (`down`)."""
        return {"name": self.name, "pid": self.pid, "born": proc.born(self.pid)}

    def log_file(self, name: str) -> Path:
        return self._log(name)

    def _popen(
        self, argv: Command, env: Mapping[str, str] | None, cwd: Path | None, log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        if not self.alive():
            raise RoomGone(f"room {self.name} is not running")
        words = ["/usr/bin/python3", "-I", "-S", str(ENTER), str(self.pid), str(cwd or "/"), *map(str, argv)]
        return subprocess.Popen(
            words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def _log(self, name: str) -> Path:
        folder = self.folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"


def end_by_name(left: dict[str, int | str], seconds: float = 30.0) -> bool:
    """End a room that another process made, if it is still the same one; False when it was gone already."""
    pid = int(left["pid"])
    if not left["born"] or proc.born(pid) != left["born"]:
        return False
    os.kill(pid, signal.SIGKILL)
    wait.until(f"the end of room {left['name']}", lambda: proc.state(pid) in ("", "Z"), seconds)
    return True


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log file, for an error message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return f"(no log at {path})"


def wait_for_port(port: int, greeting: bytes, running: Running, log: Path, seconds: float) -> None:
    """Until something answers on 127.0.0.1; says the log's end when the process died instead."""

    def look() -> bool:
        if not running.alive():
            raise wait.NotInTime(f"ended with status {running.door.poll()}; {log} ends with:\n{tail(log)}")
        return proc.answers(port, greeting)

    began = time.monotonic()
    try:
        wait.until(f"port {port}", look, seconds, every=0.1)
    except wait.NotInTime as late:
        raise wait.NotInTime(f"{late} ({time.monotonic() - began:.1f} s); {log}:\n{tail(log)}") from None
