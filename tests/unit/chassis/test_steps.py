"""One flow, step by step, in virtual time: every way that it can go."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from chassis import context, flow, flow_door, logs
from chassis.clock import FakeClock
from chassis.database import Database
from chassis.flow import Flow, FlowKind, FlowRow
from chassis.step_runner import Stopped, Worker, wait_of
from chassis.steps import ClaimLost, Failed, GoOn, Look, NeedsPerson, Runner, Step, Unknown
from contracts import errors
from tests.fakes.flows import VirtualSignal, World, make_tables, row_of

AWAY = errors.ServiceAway(service="hostagent")
BUSY = errors.DiskBusy(disk_id="d1", flow_id="other")


class Bench:
    """One flow "f" of kind "job" on one world; `run` drives it to its end under a new claim."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.clock = FakeClock()
        self.database = Database(f"sqlite:///{folder}/flows.sqlite", self.clock)
        self.world = World(folder / "world")
        self.moves: list[tuple[str, str, str]] = []
        self.waits: list[float] = []
        self.on_wait: Callable[[float], object] = lambda _: None
        self.kind = self.world.kind("a", "b", "c", "d", c={"no_way_back": True}, on_move=self._moved)
        self.runner = Runner(self.database, [self.kind], self.clock, "bench")
        make_tables(self.database)

    def _moved(self, _session: Any, row: FlowRow, old: str, new: str) -> None:
        self.moves.append((old, new, row.step))

    def start(self, data: dict[str, Any] | None = None, user: str = "ann") -> FlowRow:
        call = context.Call(request_id="r1", flow_id=None, user=user, deadline=None)
        with context.use(call), self.database.write() as session:
            return self.runner.start(session, "job", "f", "disk1", data or {})

    def worker(self, patience: float = 1800.0) -> Worker:
        row = self.runner._claims.claim("f")
        assert row is not None

        def waited(seconds: float) -> None:
            self.waits.append(seconds)
            self.on_wait(seconds)

        signal = VirtualSignal(self.clock, waited)
        return Worker(self.database, self.kind, row, clock=self.clock, signal=signal, patience=patience)

    def run(self, patience: float = 1800.0) -> FlowRow:
        if row_of(self.database, "f").active:
            self.worker(patience).run()
        return self.row

    @property
    def row(self) -> FlowRow:
        return row_of(self.database, "f")

    def cancel(self, *_: Any) -> FlowRow:
        call = context.Call(request_id="r2", flow_id=None, user="bob", deadline=None)
        with context.use(call), self.database.write() as session:
            return self.runner.cancel(session, "f")

    def resume(self) -> FlowRow:
        with self.database.write() as session:
            return self.runner.resume(session, "f")


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """structlog's own set-up draws every traceback in colours, which takes a second."""
    logs.setup("test", json=True, stream=io.StringIO())
    yield
    structlog.reset_defaults()


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.database.close()


def raising(*problems: Exception) -> Callable[[Flow], None]:
    """Raises these one after the other, then nothing."""
    left = list(problems)

    def act(_flow: Flow) -> None:
        if left:
            raise left.pop(0)

    return act


def always(problem: Exception) -> Callable[[Flow], None]:
    def act(_flow: Flow) -> None:
        raise problem

    return act


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


# -- cancel -----------------------------------------------------------------------------------------------


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
    bench.on_wait = lambda _: (bench.cancel(), worker.poke(outdated=True)) if len(bench.waits) == 2 else None
    worker.run()
    assert (bench.row.state, bench.row.cancel_by) == ("undone", "bob")
    assert bench.world.asks() == ["a", "undo a"]


def test_a_cancel_is_taken_while_the_outcome_is_unknown(bench: Bench) -> None:
    bench.world.before["look b"] = always(AWAY)
    bench.start()
    worker = bench.worker()
    bench.on_wait = lambda _: (bench.cancel(), worker.poke(outdated=True))
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
    bench.world.before["look b"] = lambda _: (worker.poke(), bench.world.finish("b")) if not bench.waits else None
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
