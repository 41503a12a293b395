"""What a benchmark prints: a row with ours, the plain thing, the ratio of the two, and whether that is good enough."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class Bound(Protocol):
    """What a line is held to."""

    def kept(self, ours: float, plain: float) -> bool: ...


@dataclass(frozen=True)
class Ratio:
    """Ours is at most so many times the plain one."""

    most: float

    def kept(self, ours: float, plain: float) -> bool:
        return ours <= self.most * plain

    def __str__(self) -> str:
        return f"<= x{self.most:.4g}"


@dataclass(frozen=True)
class Above:
    """Ours is at most so much above the plain one, in the line's unit."""

    most: float

    def kept(self, ours: float, plain: float) -> bool:
        return ours - plain <= self.most

    def __str__(self) -> str:
        return f"<= +{self.most:.4g}"


@dataclass
class Line:
    """`ours` and `plain` are measured in turns. `unit` belongs to both; a line without `wanted` only tells."""

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    wanted: Bound | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Median of ours over median of the plain one."""
        return statistics.median(self.ours) / statistics.median(self.plain)

    @property
    def missed(self) -> bool:
        """By the medians. What was not measured has kept to nothing."""
        if self.wanted is None:
            return False
        if not (self.ours and self.plain):
            return True
        return not self.wanted.kept(statistics.median(self.ours), statistics.median(self.plain))

    def __str__(self) -> str:
        if not (self.ours and self.plain):
            return f"{self.name:<44} not measured{' MISSED' * self.missed}"
        ours, plain = statistics.median(self.ours), statistics.median(self.plain)
        spread = f"({min(self.ours):.4g} to {max(self.ours):.4g} / {min(self.plain):.4g} to {max(self.plain):.4g})"
        held = f"{self.wanted or ''!s:<10} {'MISSED' * self.missed:<6}"
        words = f"{self.name:<44} {ours:>10.4g} {plain:>10.4g} {self.unit:<6} x{self.ratio:<6.3g} {held}"
        return f"{words} {spread} {self.note}".rstrip()


HEAD = f"{'median':<44} {'ours':>10} {'plain':>10} {'':<6} ratio   {'wanted':<17} (lowest to highest of ours / plain)"


def in_turns(line: Line, ours: Callable[[], float], plain: Callable[[], float], rounds: int) -> Line:
    """One round of each that does not count, then `rounds` of each, A B B A, so that drift hits both alike."""
    ours(), plain()
    for number in range(rounds):
        for each in (ours, plain) if number % 2 == 0 else (plain, ours):
            (line.ours if each is ours else line.plain).append(each())
    return line
