"""A benchmark that misses what was wanted says so, and ends with 1."""

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench.lines import Above, Line, Ratio, in_turns

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("ours", "wanted", "missed"),
    [
        (200.0, Ratio(2), False),
        (201.0, Ratio(2), True),
        (105.0, Ratio(1 / 0.95), False),
        (106.0, Ratio(1 / 0.95), True),
        (101.0, Above(1), False),
        (101.1, Above(1), True),
        (1000.0, None, False),
    ],
)
def test_the_median_is_held_to_the_bound(ours: float, wanted: Ratio | Above | None, missed: bool) -> None:
    line = Line("a", "s", [0.0, ours, 9e9], [100.0, 100.0, 100.0], wanted)
    assert line.missed is missed
    assert ("MISSED" in str(line)) is missed


def test_what_was_wanted_and_not_measured_is_missed() -> None:
    line = Line("a", "s", wanted=Ratio(2))
    assert (line.missed, str(line).split()[-1]) == (True, "MISSED")


def test_a_bound_is_shown_beside_what_it_holds() -> None:
    assert " <= x1.053 " in str(Line("a", "s", [1.0], [1.0], Ratio(1 / 0.95)))
    assert " <= +0.5 " in str(Line("a", "ms", [1.0], [1.0], Above(0.5)))


def test_drift_hits_both_alike_and_the_first_round_does_not_count() -> None:
    moments = iter(range(100))
    line = in_turns(Line("a", "s"), lambda: next(moments), lambda: next(moments), 2)
    assert (line.ours, line.plain) == ([2, 5], [3, 4])


def run(monkeypatch: pytest.MonkeyPatch, measured: list[Line]) -> None:
    """`python -m bench scan`, with these lines in place of measurements."""

    def lines() -> Iterator[Line]:
        yield from measured

    monkeypatch.setitem(sys.modules, "bench.scan", types.SimpleNamespace(run=lines))
    monkeypatch.setattr(sys, "argv", ["bench", "scan"])
    bench.main()


def test_one_line_that_is_missed_fails_the_run_after_all_were_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = Line("slow", "s", [3.0], [1.0], Ratio(2)), Line("quick", "s", [1.0], [1.0], Ratio(2))
    with pytest.raises(SystemExit, match="missed: slow"):
        run(monkeypatch, [bad, good])
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()] == ["median", "slow", "quick"]


def test_a_run_that_keeps_to_everything_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, [Line("quick", "s", [1.0], [1.0], Ratio(2)), Line("told only", "s", [9.0], [1.0])])


def test_a_benchmark_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "There is no benchmark nothing" in done.stderr
