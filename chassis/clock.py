"""Time, injected, so that a test decides what time it is."""

from __future__ import annotations

import datetime
import time
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time (always UTC), a monotonic count of seconds, and sleep in seconds."""

    def now(self) -> datetime.datetime: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clock. Its sleep is `time.sleep`, which the bus makes green."""

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class FakeClock:
    """Virtual time: it moves by `advance` and by `sleep`, never by itself."""

    def __init__(self, start: datetime.datetime | None = None) -> None:
        self._now = start or datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        self._monotonic = 0.0

    def now(self) -> datetime.datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self._now += datetime.timedelta(seconds=seconds)
        self._monotonic += seconds


def iso(moment: datetime.datetime) -> str:
    """`2026-01-01T00:00:00.000000Z`: how times are written on the bus and in the API."""
    return f"{moment.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def parse(text: str) -> datetime.datetime:
    """The reverse of `iso`; a time without a zone is refused with ValueError."""
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text!r} has no zone")
    return moment.astimezone(datetime.UTC)
