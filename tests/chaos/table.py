"""The table of outcomes: rows are crash points, columns victims, cells counts. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from tests.chaos.run import DONE, FAILED, MISSED, UNDONE, Outcome
from tests.chaos.walk import MOMENT, VICTIMS, elsewhere

SIGNS = {DONE: "d", UNDONE: "u", MISSED: "-", FAILED: "F"}
LEGEND = "d done, u undone with a reason, - not reached (never counted as passed), F failed; 2d1u: two done, one undone"


def text(outcomes: Sequence[Outcome], unwalked: Iterable[str] = ()) -> str:
    parts = [
        _grid(outcomes),
        LEGEND,
        "",
        _sums(outcomes),
        *_reasons(outcomes),
        *_missed(outcomes),
        *_failures(outcomes),
    ]
    left = list(unwalked)
    if left:
        parts += ["", f"No operation of this walk comes by these {len(left)} points:"]
        parts += [f"  {point}: {elsewhere(point)}" for point in left]
    return "\n".join(parts) + "\n"


def command(seed: int) -> str:
    return f'make chaos ARGS="--seed {seed}"'


def _grid(outcomes: Sequence[Outcome]) -> str:
    cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in outcomes:
        cells[one.plan.point, one.plan.victim][one.what] += 1
    rows = sorted({point for point, _ in cells}, key=lambda point: (point == MOMENT, point))
    wide = max([len(row) for row in rows] or [0])
    lines = [" ".join(["".ljust(wide), *(victim.rjust(10) for victim in VICTIMS)])]
    for row in rows:
        said = (_cell(cells[row, victim]).rjust(10) for victim in VICTIMS)
        lines.append(" ".join([row.ljust(wide), *said]))
    return "\n".join(lines)


def _cell(counts: Counter[str]) -> str:
    many = sum(counts.values()) > 1
    said = (f"{counts[what] if many else ''}{sign}" for what, sign in SIGNS.items() if counts[what])
    return "".join(said) or "."


def _sums(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(one.what for one in outcomes)
    seconds = sum(one.seconds for one in outcomes)
    said = ", ".join(f"{counts[what]} {what}" for what in SIGNS)
    return f"{len(outcomes)} runs in {seconds / 60:.1f} minutes: {said}"


def _reasons(outcomes: Sequence[Outcome]) -> list[str]:
    counts = Counter(one.why for one in outcomes if one.what == UNDONE)
    return [f"undone, {why}: {count}" for why, count in counts.most_common()]


def _missed(outcomes: Sequence[Outcome]) -> list[str]:
    found = [one for one in outcomes if one.what == MISSED]
    return ["", "Not reached:"] * bool(found) + [f"  seed {one.plan.seed}: {one.plan}: {one.why}" for one in found]


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    lines = []
    for one in (one for one in outcomes if one.what == FAILED):
        lines += ["", f"FAILED  {one.plan}", f"  {one.why}", f"  repeat: {command(one.plan.seed)}"]
    return lines
