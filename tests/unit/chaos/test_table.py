"""The table of outcomes."""

from __future__ import annotations

from tests.chaos import run, table
from tests.chaos.run import Outcome
from tests.chaos.walk import Plan


def outcome(seed: int, what: str, why: str = "", *, point: str = "pivot.after_mark", victim: str = "qemu") -> Outcome:
    return Outcome(Plan(seed, "sqlite", "active", point, victim, 0.0, 0.0, 0), what, why, 6.0)


def row_of(said: str, point: str) -> list[str]:
    (line,) = [line for line in said.splitlines() if line.startswith(point)]
    return line.split()[1:]


def test_a_row_counts_outcomes_by_victim() -> None:
    said = table.text([outcome(1, run.DONE), outcome(2, run.UNDONE, "vm_stopped"), outcome(3, run.DONE, victim="host")])
    assert row_of(said, "pivot.after_mark") == [".", ".", ".", ".", ".", "1d1u", "d"]
    assert "3 runs in 0.3 minutes: 2 done, 1 undone, 0 not reached, 0 failed" in said
    assert "undone, vm_stopped: 1" in said


def test_what_was_not_reached_is_listed_and_not_counted_as_passed() -> None:
    said = table.text([outcome(4, run.MISSED, "nothing to kill")])
    assert row_of(said, "pivot.after_mark") == [".", ".", ".", ".", ".", "-", "."]
    assert "0 done, 0 undone, 1 not reached, 0 failed" in said
    assert "seed 4: active, pivot.after_mark, qemu (sqlite): nothing to kill" in said


def test_a_failure_names_what_was_wrong_and_how_to_repeat_it() -> None:
    said = table.text([outcome(5, run.FAILED, "a file was left behind")])
    assert row_of(said, "pivot.after_mark")[5] == "F"
    assert "a file was left behind" in said
    assert 'repeat: make chaos ARGS="--seed 5"' in said


def test_points_that_nothing_comes_by_are_listed() -> None:
    assert "  domain.create.built" in table.text([], ["domain.create.built"])
