"""A few cells of the death table (docs/chaos.md), one for each victim in `make test`; `make chaos` walks all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import run
from tests.chaos.place import Place
from tests.chaos.walk import MOMENT, Plan

pytestmark = pytest.mark.lab

CELLS = [
    ("active", "merge.commit.after_ask", "snapshots"),
    ("active", "pivot.after_pivot", "agent"),
    ("range", "pivot.after_mark", "qemu"),
    ("internal", "commit.after_begin", "libvirtd"),
    ("take", "switch.after_create", "rabbitmq"),
    ("internal", "merge.record.after_ask", "database"),
    ("active", "volume.discard.renamed.data", "host"),
]
MORE = [
    ("take", "snapshot.switch.before_ask", "qemu"),
    ("drop disk", "image.delete.renamed", "agent"),
    ("many", MOMENT, "host"),
    ("pull", "volume.pull.after_mark", "qemu"),
    ("pull", "record.after_flush", "host"),
]
ALL = [*((cell, []) for cell in CELLS), *((cell, [pytest.mark.chaos]) for cell in MORE)]


class Walker:
    """Takes a fresh stack after a failed run, whose folder stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place: Place | None = None

    def walk(self, plan: Plan) -> run.Outcome:
        self.place = self.place or Place(plan.database).open()
        outcome = run.walk(self.place, plan)
        if outcome.what == run.FAILED:
            self.close(self.folder / f"cell-{plan.seed}")
        return outcome

    def close(self, keep: Path | None = None) -> None:
        if self.place is not None:
            self.place.close(keep)
        self.place = None


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walker]:
    made = Walker(tmp_path_factory.mktemp("deaths"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("number", "cell"),
    [pytest.param(number, cell, id=", ".join(cell), marks=marks) for number, (cell, marks) in enumerate(ALL)],
)
def test_a_cell_of_the_death_table(walker: Walker, number: int, cell: tuple[str, str, str]) -> None:
    operation, point, victim = cell
    plan = Plan(number, "postgresql", operation, point, victim, delay=0.4, away=0.5, choice=1)
    outcome = walker.walk(plan)
    print(f"\n{outcome.what} {outcome.why} after {outcome.seconds:.1f} s ({outcome.phases})")
    assert outcome.what in (run.DONE, run.UNDONE), f"{outcome.why}; logs: {walker.folder}"
