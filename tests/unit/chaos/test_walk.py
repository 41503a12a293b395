"""What a seed stands for."""

from __future__ import annotations

from collections import Counter

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


def test_the_walk_comes_by_every_point_of_the_flows_that_can_be_reached_from_outside() -> None:
    """A new step of these flows is walked, or somebody says here why not."""
    found = {point for point in walk.unwalked(crash_points.points()) if point.startswith(("merge.", "snapshot."))}
    turns_back = {f"{step}.{at}" for step in ("merge.pivot", "snapshot.switch") for at in ("before_undo", "after_undo")}
    assert found == turns_back  # QEMU has to refuse what it was asked for: tests/service/snapshots/test_crashes.py
