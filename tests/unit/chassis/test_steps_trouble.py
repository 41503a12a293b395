"""One flow, step by step, in virtual time: failures, unknown outcomes, undo."""

from __future__ import annotations

import pytest

from chassis.flow import FlowKind
from chassis.steps import Failed, GoOn, Look, NeedsPerson, Step, Unknown
from contracts import errors
from tests.fakes.flow_bench import AWAY, BUSY, Bench, always, raising

# -- failures ---------------------------------------------------------------------------------------------


def test_a_failure_is_undone_in_reverse(bench: Bench) -> None:
    bench.world.before["look c"] = always(BUSY)
    bench.start()
    row = bench.run()
    assert (row.state, row.problem) == ("undone", BUSY)
    assert bench.world.asks() == ["a", "b", "undo b", "undo a"]


def test_a_refused_ask_is_undone_too_because_it_was_asked_for(bench: Bench) -> None:
    bench.world.before["ask b"] = always(Failed(BUSY))
    bench.start()
    row = bench.run()
    assert (row.state, row.problem) == ("undone", BUSY)
    assert bench.world.asks() == ["a", "b", "undo b", "undo a"]


def test_a_failure_before_anything_was_asked_for_undoes_nothing(bench: Bench) -> None:
    bench.world.before["look a"] = always(BUSY)
    bench.start()
    assert (bench.run().state, bench.world.asks()) == ("undone", [])


def test_a_refused_ask_that_happened_all_the_same_goes_on(bench: Bench) -> None:
    bench.world.after["ask c"] = always(BUSY)
    bench.start()
    assert bench.run().state == "done"


def test_after_the_point_of_no_return_a_failure_is_tried_again(bench: Bench) -> None:
    bench.world.before["ask d"] = raising(BUSY, BUSY)
    bench.start()
    assert bench.run().state == "done"
    assert [word for word in bench.world.asks() if "undo" in word] == []


def test_after_the_point_of_no_return_a_lasting_failure_needs_a_person(bench: Bench) -> None:
    bench.world.before["look d"] = always(BUSY)
    bench.start()
    row = bench.run()
    assert (row.state, row.problem, row.claimed_by) == ("stuck", BUSY, None)
    assert row.action == "Wait for it or cancel it: drystone job cancel other. Then: drystone job resume f"
    assert bench.world.log.count("look d") == 5


def test_a_stuck_flow_goes_on_when_it_is_resumed(bench: Bench) -> None:
    bench.world.before["look d"] = raising(*[BUSY] * 5)
    bench.start()
    assert bench.run().state == "stuck"
    row = bench.resume()
    assert (row.state, row.reason, row.action) == ("running", None, None)
    assert bench.run().state == "done"


def test_a_step_may_ask_for_a_person(bench: Bench) -> None:
    bench.world.before["look b"] = raising(NeedsPerson(BUSY, "Kick the box."))
    bench.start()
    row = bench.run()
    assert (row.state, row.step, row.action) == ("stuck", "b", "Kick the box. Then: drystone job resume f")
    bench.resume()
    assert bench.run().state == "done"


# -- unknown outcomes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unknown",
    [
        errors.NoAnswer(service="x", method="y", seconds=1),
        AWAY,
        errors.BusAway(reason="x"),
        errors.Late(service="x", method="y", seconds=1),
        errors.DatabaseAway(service="x", reason="y"),
        errors.InternalError(correlation_id="x"),
        Unknown(AWAY),
        ZeroDivisionError(),
    ],
    ids=lambda problem: type(problem).__name__,
)
@pytest.mark.parametrize("where", ["look b", "ask b", "look c", "ask c", "ask d"])
def test_an_unknown_outcome_is_looked_at_until_it_is_known(bench: Bench, unknown: Exception, where: str) -> None:
    bench.world.before[where] = raising(*[unknown] * 7)  # more often than a step has tries
    bench.start()
    assert bench.run().state == "done"
    assert [word for word in bench.world.asks() if "undo" in word] == []


def test_a_lost_answer_is_not_asked_for_again_when_the_world_shows_it(bench: Bench) -> None:
    bench.world.after["ask b"] = raising(errors.NoAnswer(service="x", method="y", seconds=1))
    bench.start()
    assert bench.run().state == "done"
    assert bench.world.asks() == ["a", "b", "c", "d"]


def test_looks_at_an_unknown_outcome_become_rarer(bench: Bench) -> None:
    bench.world.before["look b"] = raising(*[AWAY] * 8)
    bench.start()
    bench.run()
    assert bench.waits == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_patience_with_an_unknown_outcome_ends_with_a_person_never_with_a_failure(bench: Bench) -> None:
    bench.world.before["look b"] = always(AWAY)
    bench.start()
    row = bench.run(patience=60)
    assert (row.state, row.problem) == ("stuck", AWAY)
    assert 60 <= sum(bench.waits) < 70
    assert str(row.action).startswith(AWAY.advice)


def test_a_step_that_this_version_does_not_know_needs_a_person(bench: Bench) -> None:
    bench.start()
    bench.world.before["look a"] = raising(NeedsPerson(BUSY))
    bench.kind = FlowKind("job", (Step("z", settled=lambda _: Look.SETTLED, ask=lambda _: None),))
    row = bench.run()
    assert (row.state, row.step) == ("stuck", "a")
    assert "job has no step a" in str(row.action)


# -- undo -------------------------------------------------------------------------------------------------


def test_an_undo_is_tried_again_until_it_works(bench: Bench) -> None:
    bench.world.before["look c"] = always(BUSY)
    bench.world.before["undo b"] = raising(AWAY, BUSY, ZeroDivisionError())
    bench.start()
    assert (bench.run().state, bench.row.problem) == ("undone", BUSY)
    assert bench.world.asks()[2:] == ["undo b"] * 4 + ["undo a"]


def test_an_undo_that_does_not_work_needs_a_person_and_remembers_why_it_undoes(bench: Bench) -> None:
    full = errors.NoSpace(action="x", needs=1, has=0, domain_id="s1")
    bench.world.before["look c"] = always(BUSY)
    bench.world.before["undo b"] = raising(*[full] * 5)
    bench.start()
    row = bench.run()
    assert (row.state, row.undoing, row.problem) == ("stuck", True, full)
    assert bench.cancel().state == "stuck"
    assert bench.resume().state == "undoing"
    assert (bench.run().state, bench.row.problem) == ("undone", BUSY)


def test_an_undo_may_take_its_time(bench: Bench) -> None:
    looks = iter([Look.RUNNING, Look.RUNNING, None])
    step = bench.kind.steps[1]
    slow = Step("b", settled=step.settled, ask=step.ask, undo=lambda _: next(looks), patience=0.7)
    bench.kind = FlowKind("job", (bench.kind.steps[0], slow, *bench.kind.steps[2:]))
    bench.world.before["look c"] = always(BUSY)
    bench.start()
    assert bench.run().state == "undone"
    assert bench.waits == [0.7, 0.7]


def test_an_undo_that_finds_the_deed_done_goes_on(bench: Bench) -> None:
    bench.world.before["look c"] = raising(BUSY)
    bench.world.before["undo b"] = always(GoOn("the guest writes there already"))
    bench.start()
    row = bench.run()
    assert (row.state, row.past, row.reason) == ("done", True, None)


def test_a_step_without_undo_is_passed_over(bench: Bench) -> None:
    bare = Step("b", settled=bench.kind.steps[1].settled, ask=bench.kind.steps[1].ask)
    bench.kind = FlowKind("job", (bench.kind.steps[0], bare, *bench.kind.steps[2:]))
    bench.world.before["look c"] = always(BUSY)
    bench.start()
    assert bench.run().state == "undone"
    assert bench.world.asks() == ["a", "b", "undo a"]
