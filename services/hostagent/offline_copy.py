"""qemu-img at work in an offline merge, for its writer: down (commit) or up (rebase). It tells how far it is, is held
to its limit, which the agent may change by a line on standard input, and ends with the agent and with sanlock.

What goes up is read through the volumes that go and written into top where that reads otherwise without them; the
header of top comes last. A death leaves a top that holds some things twice.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts import errors
from services.hostagent import chain, files, layout, under_lease
from services.hostagent.throttle import Throttle

TELL = 0.5  # seconds between two lines of progress
POLITE = ("ionice", "-c", "2", "-n", "7", "nice", "-n", "10")  # guests and other hosts come first
_PERCENT = re.compile(rb"\(\s*([0-9.]+)/100%\)")
_SPACE = ("No space left on device", "Disk quota exceeded")
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl

Volumes = dict[str, chain.Volume]


@dataclass
class Orders:
    """What the agent says on standard input, a line each: {"bandwidth": bytes per second}. `limit`: the last one."""

    source: tuple[int, ...] = (0,)
    part: bytes = b""
    limit: int | None = None

    def take(self, said: bytes) -> None:
        """Nothing more comes after an end."""
        self.source = self.source if said else ()
        *lines, self.part = (self.part + said).split(b"\n")
        for line in lines:
            self.limit = int(json.loads(line)["bandwidth"])


@dataclass(frozen=True)
class Work:
    """What is merged in one image. `between`: what lies between top and base, the one below top first. `pull`: up into
    top instead of down into base. `bandwidth` in bytes per second, 0: no limit. `agent`: its pid."""

    place: layout.Place
    image: str
    base: str
    top: str
    between: Sequence[str]
    pull: bool
    bandwidth: int
    agent: int
    orders: Orders = field(default_factory=Orders)

    @property
    def limit(self) -> int:
        """What holds now; it outlives a try of qemu-img's that met a lock."""
        return self.bandwidth if self.orders.limit is None else self.orders.limit

    @property
    def stays(self) -> str:
        return self.top if self.pull else self.base

    @property
    def going(self) -> tuple[str, ...]:
        """Leaf side first."""
        return (*self.between, self.base) if self.pull else (self.top, *self.between)

    def room(self, volumes: Volumes) -> tuple[int, int]:
        """(bytes that are copied at most, bytes that what stays may grow by). Raises NoSpace."""
        held = sum(volumes[one].actual_size for one in self.going)
        most = max(volumes[one].capacity for one in (self.top, self.base))
        needs = max(0, min(held, most - volumes[self.stays].actual_size))
        has = files.free(self.place.images)[1]
        if needs > has:
            raise errors.NoSpace(action="merging", domain_id=self.place.id, needs=needs, has=has)
        return held, needs


def down(work: Work, volumes: Volumes) -> None:
    """-d leaves top as it is: that nobody needs it is said by its mark."""
    words = ["qemu-img", "commit", "-p", "-d", "-f", layout.QEMU_FORMAT[volumes[work.top].format], "-b", work.base]
    _run(work, volumes, [*words, work.top])


def up(work: Work, volumes: Volumes, ground: str | None) -> None:
    """The header of top names the ground (None: nothing) then. Each write goes through to the storage with its tables:
    what qemu-img writes at its end only, when it closes a file, may fail without that it says so by its status."""
    how = ["-p", "-t", "writethrough", "-f", layout.QEMU_FORMAT[volumes[work.top].format]]
    words = ["qemu-img", "rebase", *how, "-b", ground or ""]
    if ground is not None:
        words += ["-F", layout.QEMU_FORMAT[volumes[ground].format]]
    _run(work, volumes, [*words, work.top])


def _run(work: Work, volumes: Volumes, words: Sequence[str]) -> None:
    end, needs = work.room(volumes)
    lease = under_lease.connection()
    with subprocess.Popen(
        [*POLITE, *words],
        cwd=work.place.image(work.image),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=() if lease is None else (lease,),
        preexec_fn=_die_with_us,  # noqa: PLW1509 - this process has one thread
    ) as running:
        try:
            said = _follow(running, work, lease, end)
        except BaseException:
            running.kill()  # it may be stopped: nothing else ends it then, and it has the lease
            raise
    if running.returncode != 0 or _complains(said):
        raise _failed(work, said or f"qemu-img ended with {running.returncode}", needs)


def _follow(running: subprocess.Popen[bytes], work: Work, lease: int | None, end: int) -> str:
    """Tell how far it is, until it ends; what it complained of. It ends too when nobody listens, the agent being gone,
    and when nobody renews the lease, sanlock being gone."""
    assert running.stdout is not None  # noqa: S101  for mypy
    assert running.stderr is not None  # noqa: S101
    outputs, said, progress = {running.stdout.fileno(), running.stderr.fileno()}, b"", Progress(end)
    throttle, orders = Throttle(work.limit), work.orders
    while outputs:
        for descriptor in select.select([*outputs, *orders.source], [], [], throttle.look)[0]:
            part = os.read(descriptor, 4096)
            if descriptor in orders.source:
                orders.take(part)
                throttle.set(work.limit)
            elif not part:
                outputs.discard(descriptor)
            elif descriptor == running.stderr.fileno():
                said = (said + part)[-2000:]
            else:
                progress.take(part)
        progress.tell()
        throttle.hold(running.pid)
        if os.getppid() != work.agent or _hung_up(lease):
            running.kill()
            raise SystemExit("the agent is gone" if os.getppid() != work.agent else "sanlock is gone")
    running.wait()
    return said.decode("utf-8", "replace").strip()


@dataclass
class Progress:
    """Of what qemu-img prints the last is told, a little later where it comes too soon: while it is held to a limit it
    may print two things at once and be silent for long after that."""

    end: int  # bytes
    percent: float = -1.0
    told: float = -1.0
    when: float = 0.0

    def take(self, printed: bytes) -> None:
        found = _PERCENT.findall(printed)
        self.percent = float(found[-1]) if found else self.percent

    def tell(self) -> None:
        if self.percent != self.told and time.monotonic() - self.when > TELL:
            self.told, self.when = self.percent, time.monotonic()
            say({"cur": int(self.end * self.percent / 100), "end": self.end})


def _complains(said: str) -> bool:
    """Of anything but a warning: it ends well although it could not flush a file that it closed."""
    return any("warning:" not in line for line in said.splitlines() if line.strip())


def _hung_up(lease: int | None) -> bool:
    """sanlock says nothing on this connection by itself: what can be read there is its end."""
    return lease is not None and bool(select.select([lease], [], [], 0)[0])


def _failed(work: Work, said: str, needs: int) -> errors.Problem:
    if any(words in said for words in _SPACE):
        has = files.free(work.place.images)[1]
        return errors.NoSpace(action="merging", domain_id=work.place.id, needs=needs, has=has)
    if "lock" in said and "Failed to get" in said:
        return errors.VolumeInUse(volume_id=work.top, by="a process that has it open (QEMU's image lock)")
    return errors.JobFailed(disk_id=work.image, reason=f"qemu-img: {said[:500]}")


def _die_with_us() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def say(line: dict[str, Any]) -> None:
    """One line for the agent."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
