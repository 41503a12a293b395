"""Holding a process to so many bytes per second, by stopping it while it is ahead: for programs that have no limit of
their own (`qemu-img rebase`), or none that could be changed while they run (`qemu-img commit`)."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

FASTEST = 2 * 10**9  # bytes a second that a storage may take at most, as far as we have seen
SHORTEST, LONGEST = 0.002, 0.2  # seconds between two looks


class Throttle:
    """`look`: seconds until `hold` is to be called again, which stops the process or lets it go on. What it has not
    used is lost: a storage that was slow is not made up for by a burst."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen, self._when = 0, clock()
        self.stopped = False
        self.set(limit)

    def set(self, limit: int) -> None:
        """Bytes a second from now on, 0: no limit."""
        self._limit, self._ahead = limit, 0.0
        # between two looks even the fastest storage takes no more than is allowed in a quarter of a second
        self._slice = min(LONGEST, max(SHORTEST, limit / 4 / FASTEST)) if limit else LONGEST
        self.look = self._slice

    def hold(self, pid: int) -> None:
        """A process that is gone is left alone."""
        try:
            stop = self.is_ahead(_written(pid))
            if stop is not self.stopped:
                os.kill(pid, signal.SIGSTOP if stop else signal.SIGCONT)
                self.stopped = stop
        except (ProcessLookupError, FileNotFoundError):
            return

    def is_ahead(self, written: int) -> bool:
        """`written`: bytes since its beginning."""
        now = self._clock()
        allowed = self._limit * (now - self._when) if self._limit else math.inf
        self._ahead = max(0.0, self._ahead + (written - self._seen) - allowed)
        self._seen, self._when = written, now
        self.look = min(LONGEST, max(SHORTEST, self._ahead / self._limit)) if self._ahead else self._slice
        return self._ahead > 0


def _written(pid: int) -> int:
    """Bytes that a process gave to write calls. Raises FileNotFoundError, ProcessLookupError."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])
