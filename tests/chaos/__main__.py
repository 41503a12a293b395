"""`make chaos ARGS=...`: walk crash points and victims on real machines, and print the table of what came of it.

make chaos ARGS="--count 40 --first 120"     # seeds 120 to 159
make chaos ARGS="--seed 1234"                # one run again
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos import run, table, walk
from tests.chaos.place import Place
from tests.chaos.run import FAILED, Outcome
from tests.chaos.walk import Plan
from tests.checks import crash_points

OUT = Path(__file__).parents[2] / ".state/chaos"
MORE = 60  # runs in which anything may happen, after all pairs were walked


def main(words: list[str]) -> int:
    asked = _arguments(words)
    points = crash_points.points()
    count = asked.count or len(walk.matrix(points)) + MORE
    seeds = asked.seed or range(asked.first, asked.first + count)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    asked.out.mkdir(parents=True, exist_ok=True)
    kept = asked.out / "outcomes.jsonl"
    if not asked.add:
        kept.unlink(missing_ok=True)
    had = {one.plan.seed for one in read(kept)}
    plans = walk.sample(points, [seed for seed in seeds if seed not in had])
    if asked.database:
        plans = [plan for plan in plans if plan.database == asked.database]
    for outcome in walked(plans, asked.out, asked.minutes * 60):
        with kept.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
    outcomes = read(kept)
    said = table.text(outcomes, walk.unwalked(points))
    (asked.out / "table.txt").write_text(said)
    print(f"\n{said}\nThe table is in {asked.out}/table.txt")
    return 1 if any(one.what == FAILED for one in outcomes) else 0


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--count", type=int, help=f"how many runs (default: every pair once, and {MORE} more)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, action="append", help="only this run; may be given several times")
    parser.add_argument("--minutes", type=float, default=600, help="begin no run after so many minutes")
    parser.add_argument("--add", action="store_true", help="go on with the walk before: skip its seeds, one table")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only runs on this one")
    parser.add_argument("--out", type=Path, default=OUT, help="where table and logs of failed runs go")
    return parser.parse_args(words)


def walked(plans: list[Plan], out: Path, seconds: float) -> Iterator[Outcome]:
    """Walk them one by one, each told in a line; a failed run ends its stack, whose folder is kept."""
    limit = time.monotonic() + seconds
    where: Place | None = None
    try:
        for plan in plans:
            if time.monotonic() > limit:
                print(f"The time is over before seed {plan.seed}.")
                return
            if where is not None and where.database != plan.database:
                where.close(keep=None)
                where = None
            where = where or Place(plan.database).open()
            outcome = run.walk(where, plan)
            took = f"{outcome.seconds:5.1f} s ({outcome.phases})"
            print(f"seed {plan.seed:4}  {outcome.what:11} {took}  {plan}  {outcome.why}", flush=True)
            if outcome.what == FAILED:
                where.close(keep=_free(out / f"seed-{plan.seed}"))
                where = None
            yield outcome
    finally:
        if where is not None:
            where.close(keep=None)


def _free(folder: Path) -> Path:
    """A name that is not taken yet."""
    number, found = 1, folder
    while found.exists():
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    print(f"  logs: {found}")
    return found


def read(kept: Path) -> list[Outcome]:
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    return [Outcome(Plan(**row.pop("plan")), **row) for row in rows]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
