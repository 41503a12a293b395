"""One flow, step by step, in virtual time: forward, cancelled, claimed, moved."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from chassis import context, flow, flow_door
from chassis.flow import Flow, FlowKind
from chassis.step_runner import Stopped, Worker, wait_of
from chassis.steps import ClaimLost, NeedsPerson
from contracts import errors
from tests.fakes.flow_bench import AWAY, BUSY, Bench, always

# -- forward ----------------------------------------------------------------------------------------------


def test_a_flow_asks_for_each_step_once_and_ends_done(bench: Bench) -> None:
    bench.start()
    row = bench.run()
    assert (row.state, row.past, row.reason, row.claimed_by) == ("done", True, None, None)
    assert bench.world.asks() == ["a", "b", "c", "d"]
    assert bench.waits == []  # no avoidable delay anywhere
    assert [step for *_, step in bench.moves] == ["a", "b", "c", "d", "d"]


def test_steps_that_are_settled_already_are_not_asked_for(bench: Bench) -> None:
    for name in "abcd":
        bench.world.finish(name)
    bench.start()
    assert bench.run().state == "done"
    assert bench.world.asks() == []


def test_the_ask_is_written_down_before_it_is_made(bench: Bench) -> None:
    seen: list[int] = []
    bench.world.before["ask b"] = lambda _: seen.append(bench.row.asks)
    bench.start()
    bench.run()
    assert seen == [1]


def test_a_step_under_way_is_looked_at_until_it_is_settled(bench: Bench) -> None:
    bench.world.start_long("b")
    bench.on_wait = lambda _: bench.world.finish("b") if len(bench.waits) == 3 else None
    bench.start()
    assert bench.run().state == "done"
    assert bench.waits == [0.05] * 3
    assert bench.world.asks() == ["a", "c", "d"]


def test_the_call_context_of_who_asked_is_there_in_every_step(bench: Bench) -> None:
    seen: list[tuple[str, str | None, str]] = []

    def look(_flow: Flow) -> None:
        call = context.current()
        seen.append((call.request_id, call.flow_id, call.user))

    bench.world.before["look a"] = look
    bench.start()
    bench.run()
    assert set(seen) == {("r1", "f", "ann")}


def test_what_a_step_saves_is_there_after_a_restart(bench: Bench) -> None:
    bench.world.before["ask b"] = lambda step: step.save(node="n1")
    bench.start({"disk": "d1"})
    bench.run()
    assert bench.row.data == {"disk": "d1", "node": "n1"}


def test_progress_is_kept_and_told(bench: Bench) -> None:
    bench.world.before["look b"] = lambda step: step.report({"bytes": 5})
    bench.start()
    bench.run()
    assert bench.row.progress == {"bytes": 5}
    assert bench.moves.count(("running", "running", "b")) == 3  # one move and two looks


def test_a_step_may_write_the_services_rows_under_its_claim(bench: Bench) -> None:
    def write(step: Flow) -> None:
        with step.write() as session:
            assert flow.find(session, "f") is not None

    bench.world.before["ask a"] = write
    bench.start()
    assert bench.run().state == "done"


def test_a_step_that_never_settles_fails_after_its_tries(bench: Bench) -> None:
    bench.world.after["ask b"] = lambda _: (bench.world.folder / "done" / "b").unlink()
    bench.start()
    row = bench.run()
    assert row.state == "undone"
    assert row.problem == errors.NotSettled(flow_id="f", step="b", tries=5)
    assert bench.world.asks().count("b") == 5
    assert bench.waits == [wait_of(tries) for tries in range(1, 6)]


# -- cancel -----------------------------------------------------------------------------------------------


def cancel_and_tell(bench: Bench, worker: Worker) -> None:
    bench.cancel()
    worker.poke(outdated=True)


def test_a_cancel_before_the_first_step_ends_undone(bench: Bench) -> None:
    bench.start()
    bench.cancel()
    row = bench.run()
    assert (row.state, row.problem) == ("undone", errors.Cancelled(user="bob"))
    assert bench.world.asks() == []


def test_a_cancel_while_a_step_is_under_way_turns_back(bench: Bench) -> None:
    bench.world.start_long("b")
    bench.start()
    worker = bench.worker()
    bench.on_wait = lambda _: cancel_and_tell(bench, worker) if len(bench.waits) == 2 else None
    worker.run()
    assert (bench.row.state, bench.row.cancel_by) == ("undone", "bob")
    assert bench.world.asks() == ["a", "undo a"]


def test_a_cancel_is_taken_while_the_outcome_is_unknown(bench: Bench) -> None:
    bench.world.before["look b"] = always(AWAY)
    bench.start()
    worker = bench.worker()
    bench.on_wait = lambda _: cancel_and_tell(bench, worker)
    worker.run()
    assert bench.row.state == "undone"


def test_a_cancel_waits_while_the_step_of_no_return_may_be_happening(bench: Bench) -> None:
    bench.world.start_long("c")
    bench.world.before["look c"] = lambda _: bench.cancel() if bench.row.cancel_by is None else None
    bench.on_wait = lambda _: bench.world.finish("c") if len(bench.waits) == 3 else None
    bench.start()
    assert bench.run().state == "done"


def test_a_cancel_turns_back_when_the_step_of_no_return_is_seen_not_to_happen(bench: Bench) -> None:
    bench.world.before["look c"] = lambda _: bench.cancel() if bench.row.cancel_by is None else None
    bench.world.before["ask c"] = lambda _: bench.world.start_long("c")
    bench.on_wait = lambda _: (bench.world.folder / "busy-c").unlink(missing_ok=True)
    bench.start()
    assert bench.run().state == "undone"
    assert bench.world.asks() == ["a", "b", "c", "undo c", "undo b", "undo a"]


def test_a_cancel_after_the_point_of_no_return_is_too_late(bench: Bench) -> None:
    caught: list[Exception] = []

    def try_it(_flow: Flow) -> None:
        try:
            bench.cancel()
        except errors.TooLate as problem:
            caught.append(problem)

    bench.world.before["look d"] = try_it
    bench.start()
    assert bench.run().state == "done"
    assert caught
    with pytest.raises(errors.TooLate):
        bench.cancel()


def test_a_second_cancel_changes_nothing(bench: Bench) -> None:
    bench.start()
    assert bench.cancel().version == bench.cancel().version
    bench.run()
    assert bench.cancel().state == "undone"


def test_a_stuck_flow_may_be_cancelled(bench: Bench) -> None:
    bench.world.before["look b"] = always(NeedsPerson(BUSY))
    bench.start()
    assert bench.run().state == "stuck"
    assert bench.cancel().state == "running"
    assert bench.run().state == "undone"
    assert bench.world.asks() == ["a", "undo a"]


def test_unknown_flows_are_not_found(bench: Bench) -> None:
    for act in (bench.cancel, bench.resume):
        with pytest.raises(errors.NotFound):
            act()


def test_only_stuck_flows_are_resumed(bench: Bench) -> None:
    bench.start()
    assert bench.resume().version == 1
    bench.run()
    with pytest.raises(errors.FlowWrongState):
        bench.resume()


# -- claims -----------------------------------------------------------------------------------------------


def test_each_claim_has_a_higher_number_than_all_before(bench: Bench) -> None:
    bench.start()
    assert [bench.worker().flow.claim for _ in range(3)] == [1, 2, 3]
    with bench.database.write() as session:
        bench.runner.start(session, bench.kind, "g", "disk1", {})
    row = bench.runner._claims.claim("g")
    assert row is not None
    assert row.claim == 4


def test_an_owner_that_lost_its_claim_saves_and_asks_nothing(bench: Bench) -> None:
    bench.start()
    old = bench.worker()
    bench.worker()
    with pytest.raises(ClaimLost):
        old.run()
    for save in (lambda: old.flow.save(x=1), lambda: old.flow.report({}), lambda: old.flow.write().__enter__()):
        with pytest.raises(ClaimLost):
            save()
    old.poke(outdated=True)
    with pytest.raises(ClaimLost):
        old.run()
    assert bench.world.asks() == []


def test_a_claim_number_that_a_host_knows_to_be_old_is_raised_when_the_claim_is_ours(bench: Bench) -> None:
    (bench.world.folder / "highest").write_text("41")  # our database was restored from a backup
    bench.start()
    assert bench.run().state == "done"
    assert bench.row.claim == 42


def test_a_stopped_worker_ends_at_its_next_wait(bench: Bench) -> None:
    bench.world.start_long("b")
    bench.start()
    worker = bench.worker()
    bench.on_wait = lambda _: worker.stop()
    with pytest.raises(Stopped):
        worker.run()
    assert bench.row.step == "b"


def test_a_poke_between_look_and_wait_is_not_lost(bench: Bench) -> None:
    bench.world.start_long("b")
    bench.start()
    worker = bench.worker()

    def finish_and_tell(_flow: Flow) -> None:
        worker.poke()
        bench.world.finish("b")

    bench.world.before["look b"] = finish_and_tell
    worker.run()
    assert bench.waits == []


# -- starting and moving ----------------------------------------------------------------------------------


def test_the_same_request_twice_starts_one_flow(bench: Bench) -> None:
    assert bench.start({"x": 1, "y": 2}).version == 1
    bench.run()
    assert bench.start({"y": 2, "x": 1}).state == "done"


def test_another_body_or_user_under_the_same_id_is_refused(bench: Bench) -> None:
    bench.start({"x": 1})
    for other in ({"data": {"x": 2}}, {"data": {"x": 1}, "user": "eve"}):
        with pytest.raises(errors.IdempotencyConflict):
            bench.start(**other)


def test_what_makes_two_requests_equal_may_be_given(bench: Bench) -> None:
    with bench.database.write() as session:
        bench.runner.start(session, "job", "f", "d", {"at": 1}, body="same")
        assert bench.runner.start(session, "job", "f", "d", {"at": 2}, body="same").data == {"at": 1}


def test_flows_are_found_by_subject_and_counted(bench: Bench) -> None:
    bench.start()
    with bench.database.write() as session:
        bench.runner.start(session, "job", "g", "disk2", {})
        assert [row.id for row in flow.list_active(session)] == ["f", "g"]
        assert [row.id for row in flow.list_active(session, kind="job", subject="disk2")] == ["g"]
        assert flow.list_active(session, kind="other") == []
        assert flow.counts(session) == {("job", "running"): 2}


def test_every_change_is_one_sentence_after_its_commit(bench: Bench) -> None:
    with structlog.testing.capture_logs() as lines:
        bench.world.before["look c"] = always(BUSY)
        bench.start()
        bench.run()
    assert [line["event"].removeprefix("job of disk1: ") for line in lines] == [
        "starts with a",
        "asks for a",
        "a is settled, next is b",
        "asks for b",
        "b is settled, next is c",
        f"turns back at c: {BUSY}",
        "b is undone, next is a",
        "ends undone",
    ]


def test_a_move_that_is_rolled_back_is_not_logged(bench: Bench) -> None:
    def refuse(*_: Any) -> None:
        raise ZeroDivisionError

    bench.start()
    broken = FlowKind("job", bench.kind.steps, refuse)
    refused = pytest.raises(ZeroDivisionError)
    with structlog.testing.capture_logs() as lines, refused, bench.database.write() as session:
        flow.move(session, bench.database, broken, bench.row, "goes", step="b")
    assert (lines, bench.row.step) == ([], "a")


STATES = ["running", "undoing", "done", "undone", "stuck"]


@given(path=st.lists(st.sampled_from(STATES), max_size=6))
def test_only_moves_of_the_table_change_the_state(tmp_path_factory: pytest.TempPathFactory, path: list[str]) -> None:
    bench = Bench(tmp_path_factory.mktemp("moves"))
    row, version = bench.start(), 1
    for state in path:
        allowed = state in flow._MOVES[row.state]
        try:
            with bench.database.write() as session:
                row = flow.move(session, bench.database, bench.kind, row, "moves", state=state)
        except ValueError:
            assert not allowed
            continue
        version += 1
        assert allowed
        assert (row.state, row.version) == (state, version)
    assert bench.row == row
    bench.database.close()


def test_a_stale_row_moves_nothing(bench: Bench) -> None:
    bench.start()
    old = bench.row
    bench.run()
    with pytest.raises(ClaimLost), bench.database.write() as session:
        flow.move(session, bench.database, bench.kind, old, "moves", state="undone")
    assert bench.row.state == "done"


def test_doors_need_a_known_kind(bench: Bench) -> None:
    with pytest.raises(KeyError), bench.database.write() as session:
        bench.runner.start(session, "nothing", "f", "d", {})
    with pytest.raises(errors.NotFound), bench.database.write() as session:
        flow_door.resume(session, bench.database, {}, "f")
