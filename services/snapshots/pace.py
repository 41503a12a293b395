"""Is a copy getting nearer to its end? Pure.

The copy of an active layer has an end that moves: the guest goes on writing. What is left is compared with what was
left one window ago; shorter spans prove nothing, since guests write in bursts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """The present window: `left` bytes were to be copied when it began, `at` in epoch seconds. `behind`: in the window
    before that nothing was gained."""

    left: int
    at: float
    behind: bool = False


def judge(pace: Pace | None, left: int, now: float, window: float, close: int) -> Pace:
    """The pace after a look that found so many bytes left. `close`: with so few left, or fewer, it has caught up."""
    if pace is None:
        return Pace(left, now)
    if left <= close and pace.behind:
        return Pace(left, now)
    if now < pace.at:  # the clock was set back
        return dataclasses.replace(pace, at=now)
    if now - pace.at < window:
        return pace
    return Pace(left, now, behind=left >= pace.left and left > close)
