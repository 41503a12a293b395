"""How long a guest stood still for a pivot, by parts, and how long its job was between two states."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

STUCK_SECONDS = 3.0  # that a job may be neither ready nor over
SETTLE = 0.02  # seconds between looks while QEMU is between two states


class Times:
    """How long each part of the standstill took in all, in milliseconds. From the first part until `over` every moment
    is booked: on the innermost part that is open, and between parts on the looking."""

    def __init__(self) -> None:
        self._parts = dict.fromkeys(("suspend_ms", "pivot_ms", "look_ms", "mark_ms", "resume_ms"), 0.0)
        self._part: str | None = None
        self._since = 0.0
        self._waiting = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        outer = self._book(name) or "look_ms"
        try:
            yield
        finally:
            self._book(outer)

    def over(self) -> None:
        """The guest runs."""
        self._book(None)

    def _book(self, name: str | None) -> str | None:
        """Change over to this part; answers the one before."""
        now, before = time.perf_counter(), self._part
        if before is not None:
            self._parts[before] += (now - self._since) * 1000
        self._part, self._since = name, now
        return before

    def wait(self) -> None:
        """Before the next look at a job that is between two states."""
        self._waiting = self._waiting or time.monotonic()
        time.sleep(SETTLE)

    def stuck(self) -> bool:
        """Whether the job has been between two states for too long for a guest that stands still."""
        return self._waiting > 0 and time.monotonic() - self._waiting > STUCK_SECONDS

    def facts(self) -> dict[str, float]:
        return {name: round(value, 2) for name, value in self._parts.items()}
