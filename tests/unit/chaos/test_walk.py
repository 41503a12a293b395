"""What a seed stands for."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tests.chaos import walk
from tests.checks import crash_points

POINTS = ("merge.plan.before_ask", "pivot.after_mark", "snapshot.switch.after_ask", "repair.after_stop")


def test_the_first_seeds_walk_every_pair_of_a_point_and_a_victim_once() -> None:
    pairs = walk.matrix(POINTS)
    assert len(pairs) == 4 * len(walk.VICTIMS)  # three points that the walk comes by, and a moment
    plans = [walk.plan_of(seed, POINTS) for seed in range(len(pairs))]
    assert Counter((plan.point, plan.victim) for plan in plans) == Counter(pairs)


def test_a_seed_means_the_same_run_whatever_was_walked_before() -> None:
    assert walk.plan_of(7, POINTS) == walk.plan_of(7, POINTS[::-1])
    assert walk.plan_of(1007, POINTS) == walk.plan_of(1007, POINTS)
    assert len({walk.plan_of(seed, POINTS) for seed in range(100)}) == 100


def test_a_point_is_walked_by_an_operation_that_comes_by_it() -> None:
    for plan in (walk.plan_of(seed, POINTS) for seed in range(200)):
        assert plan.point == walk.MOMENT or walk.comes_by(plan.operation, plan.point)


def test_a_database_connection_is_cut_where_there_is_one() -> None:
    plans = walk.sample(POINTS, range(60))
    assert all(plan.database == "postgresql" for plan in plans if plan.victim == "database")
    kinds = [plan.database for plan in plans]
    assert kinds == ["sqlite"] * kinds.count("sqlite") + ["postgresql"] * kinds.count("postgresql")


def test_points_that_no_operation_comes_by_are_named() -> None:
    assert walk.unwalked(POINTS) == ["repair.after_stop"]


def test_every_point_is_walked_or_it_is_said_why_not() -> None:
    """A new crash point belongs to an operation, or to ELSEWHERE with the reason and the tests that arm it."""
    left = walk.unwalked(crash_points.points())
    assert [point for point in left if walk.elsewhere(point) is None] == []
    assert [pattern for pattern in walk.ELSEWHERE if not any(re.fullmatch(pattern, point) for point in left)] == []


def test_what_arms_the_others_is_there() -> None:
    named = {path for why in walk.ELSEWHERE.values() for path in re.findall(r"tests/\S+\.py", why)}
    assert [path for path in sorted(named) if not Path(path).exists()] == []
