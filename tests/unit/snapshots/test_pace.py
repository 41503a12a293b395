"""When a copy counts as behind what its guest writes: in virtual time, looked at every second."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from chassis.clock import FakeClock
from services.snapshots import pace

CLOSE = 8


def behind_at(lefts: Iterable[int], window: float = 60.0) -> list[int]:
    """The seconds at which the verdict changes, one look a second."""
    clock, changes = FakeClock(), []
    now: pace.Pace | None = None
    for second, left in enumerate(lefts):
        found = pace.judge(now, left, clock.now().timestamp(), window, CLOSE)
        if found.behind != (now is not None and now.behind):
            changes.append(second)
        now = found
        clock.advance(1)
    return changes


GROWS = [1000 + second for second in range(200)]
SHRINKS = [1000 - second for second in range(200)]


@pytest.mark.parametrize(
    ("lefts", "changes"),
    [
        (SHRINKS, []),
        (GROWS, [60]),
        ([1000] * 200, [60]),
        ([*GROWS[:20], *range(1020, 820, -1)], []),
        ([*GROWS[:61], *SHRINKS[:120]], [60, 120]),
        ([*GROWS[:90], *[CLOSE] * 5], [60, 90]),
        ([CLOSE] * 200, []),
        (GROWS[:60], []),
    ],
    ids=[
        *("one that shrinks", "one that grows", "one that stands", "a burst of 20 s", "one that catches up"),
        *("one that is nearly there", "one that is ready and waits", "one that is not looked at for long enough"),
    ],
)
def test_a_copy_is_behind_when_a_whole_window_gained_nothing(lefts: list[int], changes: list[int]) -> None:
    assert behind_at(lefts) == changes


def test_a_clock_that_is_set_back_begins_a_new_window() -> None:
    first = pace.judge(None, 1000, 5000.0, 60, CLOSE)
    back = pace.judge(first, 1000, 1000.0, 60, CLOSE)
    assert not back.behind
    assert not pace.judge(back, 1000, 1030.0, 60, CLOSE).behind
    assert pace.judge(back, 1000, 1060.0, 60, CLOSE).behind
