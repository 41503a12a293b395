"""What a benchmark prints: a row with ours, the plain thing, and the ratio of the two."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Line:
    """`ours` and `plain` are measured in turns. `unit` belongs to both; `wanted` is what the ratio should keep to."""

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    wanted: str = ""
    note: str = ""

    @property
    def ratio(self) -> float:
        """Median of ours over median of the plain one."""
        return statistics.median(self.ours) / statistics.median(self.plain)

    def __str__(self) -> str:
        ours, plain = statistics.median(self.ours), statistics.median(self.plain)
        spread = f"({min(self.ours):.4g} to {max(self.ours):.4g} / {min(self.plain):.4g} to {max(self.plain):.4g})"
        words = f"{self.name:<44} {ours:>10.4g} {plain:>10.4g} {self.unit:<6} x{self.ratio:<6.3g} {self.wanted:<10}"
        return f"{words} {spread} {self.note}".rstrip()


HEAD = f"{'median':<44} {'ours':>10} {'plain':>10} {'':<6} ratio   wanted     (lowest to highest of ours / plain)"


def in_turns(line: Line, ours: Callable[[], float], plain: Callable[[], float], rounds: int) -> Line:
    """One round of each that does not count, then `rounds` of each, A B B A, so that drift hits both alike."""
    ours(), plain()
    for number in range(rounds):
        for each in (ours, plain) if number % 2 == 0 else (plain, ours):
            (line.ours if each is ours else line.plain).append(each())
    return line
