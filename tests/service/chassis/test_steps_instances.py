"""Flows among several instances, on both databases: takeover, SIGKILL at every crash point, SIGSTOP past the lease."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from chassis import context, steps
from chassis.clock import FakeClock
from chassis.database import Database
from chassis.flow import FlowKind, FlowRow
from chassis.steps import Runner
from chassis.tables import flows
from contracts import errors
from tests.fakes.databases import Opened, Postgres
from tests.fakes.flows import (
    KIND_NAMES,
    KIND_OPTIONS,
    CountedSignal,
    VirtualSignal,
    World,
    make_tables,
    row_of,
    wait_for,
    wait_for_end,
)

ROOT = pathlib.Path(__file__).resolve().parents[3]
LEASE = 1.0  # seconds
IDLE = steps.IDLE


class Twins:
    """Instances of one service on one database and one world: some in this process, some in processes to be killed."""

    def __init__(self, database: Database, url: str, folder: pathlib.Path) -> None:
        make_tables(database)
        self.database, self.url, self.folder = database, url, folder
        self.home = folder / "runners"  # where the processes show that they live
        self.world = World(folder / "world")
        self.kind = self.world.kind(*KIND_NAMES, **KIND_OPTIONS)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._loops: list[tuple[Runner, threading.Thread]] = []
        self.desk = Runner(database, [self.kind])  # starts and cancels, never runs

    def process(self, lease: float = LEASE, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fakes.flow_process", self.url, str(self.world.folder), str(lease)]
        command.append(str(self.home))
        number = len(self._processes)
        with (self.folder / f"twin{number}.log").open("wb") as log:
            made = subprocess.Popen(command, env={**os.environ, **environment}, stderr=log, cwd=ROOT)
        self._processes.append(made)
        return made

    def log(self, number: int) -> str:
        return (self.folder / f"twin{number}.log").read_text()

    def runner(self, kind: FlowKind | None = None, **options: Any) -> Runner:
        """One more instance, in a thread of this process."""
        options = {"instance": "here", "lease_seconds": LEASE, **options}
        made = Runner(self.database, [kind or self.kind], **options)
        thread = threading.Thread(target=made.loop)
        thread.start()
        self._loops.append((made, thread))
        return made

    def start(self, flow_id: str = "f", runner: Runner | None = None) -> None:
        with self.database.write() as session:
            (runner or self.desk).start(session, "job", flow_id, "disk1", {})

    def cancel(self, flow_id: str = "f") -> None:
        call = context.Call(request_id="r", flow_id=None, user="bob", deadline=None)
        with context.use(call), self.database.write() as session:
            self.desk.cancel(session, flow_id)

    def end(self, flow_id: str = "f") -> FlowRow:
        return wait_for_end(self.database, flow_id)

    def close(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(60)
        for runner, thread in self._loops:
            runner.stop()
            thread.join(60)


@pytest.fixture(autouse=True)
def quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runners of this process look for flows of the dead more often than real ones, which wait 3 s."""
    monkeypatch.setattr(steps, "IDLE", 0.2)


@pytest.fixture
def twins(database: Database, url: str, tmp_path: pathlib.Path) -> Iterator[Twins]:
    made = Twins(database, url, tmp_path)
    yield made
    made.close()


def hold_and_wait(twins: Twins, name: str) -> None:
    twins.world.hold(name)
    twins.start()
    wait_for(lambda: twins.world.held(name))


# -- several instances ------------------------------------------------------------------------------------


def test_a_killed_owners_flow_is_taken_over(twins: Twins) -> None:
    owner = twins.process()
    hold_and_wait(twins, "b")
    owner.kill()
    twins.runner()
    row = twins.end()
    assert (row.state, row.claim) == ("done", 2)
    assert "ask b claim 2" in twins.world.log


def test_a_killed_owner_of_this_machine_is_followed_before_its_lease_ends(twins: Twins) -> None:
    owner = twins.process(lease=3600)
    hold_and_wait(twins, "b")
    owner.kill()
    twins.runner(home=twins.home)
    assert twins.end().claim == 2


def test_a_frozen_owner_of_this_machine_keeps_its_claim(twins: Twins) -> None:
    owner = twins.process(lease=3600)
    hold_and_wait(twins, "b")
    owner.send_signal(signal.SIGSTOP)
    second = twins.runner(home=twins.home)
    twins.start("g", second)  # the second one is at work: it has looked for the dead by then
    twins.world.let_go("b")
    wait_for(lambda: twins.end("g").state == "done")
    assert row_of(twins.database, "f").claim == 1
    owner.send_signal(signal.SIGCONT)
    assert twins.end().state == "done"


def test_an_owner_that_slept_past_its_lease_is_refused_by_its_claim_number(twins: Twins) -> None:
    """It was stopped between the written "asking" and the ask; when it wakes up it asks under the old number."""
    owner = twins.process()
    hold_and_wait(twins, "b")
    owner.send_signal(signal.SIGSTOP)
    twins.runner()
    assert twins.end().state == "done"
    asked = [line for line in twins.world.log if line.startswith("ask")]
    twins.world.let_go("b")
    owner.send_signal(signal.SIGCONT)
    wait_for(lambda: "refused b claim 1" in twins.world.log)
    wait_for(lambda: "stops: job f is not running under claim 1 any more" in twins.log(0))
    assert [line for line in twins.world.log if line.startswith("ask")] == asked
    assert twins.end().claim == 2


def test_an_owner_that_slept_past_its_lease_cannot_save(twins: Twins) -> None:
    owner = twins.process()
    twins.world.start_long("b")
    twins.start()
    wait_for(lambda: "look b" in twins.world.log)
    owner.send_signal(signal.SIGSTOP)
    second = twins.process()
    wait_for(lambda: row_of(twins.database, "f").claim == 2)
    owner.send_signal(signal.SIGCONT)
    wait_for(lambda: "was taken over" in twins.log(0) or "under claim 1 any more" in twins.log(0))
    twins.world.finish("b")
    assert twins.end().state == "done"
    assert second.poll() is None
    assert row_of(twins.database, "f").data == {"seen": 1}  # what the first owner saved while it was the owner


def test_a_lease_is_renewed_while_its_owner_works(twins: Twins) -> None:
    twins.world.start_long("b")
    first = twins.runner(lease_seconds=6.0)  # long enough for a machine that stands still for a while
    twins.start(runner=first)
    wait_for(lambda: first.active)
    second = twins.runner()
    granted = row_of(twins.database, "f").lease_until
    wait_for(lambda: row_of(twins.database, "f").lease_until != granted)
    assert (first.active, second.active) == (1, 0)
    twins.world.finish("b")
    assert twins.end().claim == 1


def test_many_flows_are_shared_and_each_step_is_asked_for_once(twins: Twins) -> None:
    for number in range(12):
        twins.start(f"f{number}")
    for _ in range(2):
        twins.runner(limit=3)
    assert {twins.end(f"f{number}").state for number in range(12)} == {"done"}


def test_a_stopped_instance_gives_its_flows_back_at_once(twins: Twins) -> None:
    twins.world.start_long("b")
    first = twins.runner()
    twins.start(runner=first)
    wait_for(lambda: "look b" in twins.world.log)
    first.stop()
    wait_for(lambda: row_of(twins.database, "f").claimed_by is None)
    assert row_of(twins.database, "f").lease_until is None


def test_a_wake_reaches_the_owner_in_another_instance(twins: Twins) -> None:
    kind = twins.world.kind("a", a={"patience": 60.0})
    twins.world.start_long("a")
    owner = twins.runner(kind)
    twins.start(runner=owner)
    wait_for(lambda: "look a" in twins.world.log)
    twins.world.finish("a")
    twins.desk.wake("f")
    assert twins.end().state == "done"  # long before the minute of its patience


@pytest.mark.parametrize("within", [True, False], ids=["in a transaction", "alone"])
def test_a_wake_within_the_process_works_at_once(twins: Twins, within: bool) -> None:
    kind = twins.world.kind("a", a={"patience": 60.0})
    twins.world.start_long("a")
    owner = twins.runner(kind)
    twins.start(runner=owner)
    wait_for(lambda: "look a" in twins.world.log)
    twins.world.finish("a")
    if within:
        with twins.database.write() as session:
            owner.wake("f", session)
    else:
        owner.wake("f")
    assert twins.end().state == "done"


def test_a_wake_in_the_events_transaction_reaches_another_instance(twins: Twins) -> None:
    kind = twins.world.kind("a", a={"patience": 60.0})
    twins.world.start_long("a")
    twins.start(runner=twins.runner(kind))
    wait_for(lambda: "look a" in twins.world.log)
    twins.world.finish("a")
    with twins.database.write() as session:
        twins.desk.wake("f", session)
    assert twins.end().state == "done"


def test_a_cancel_reaches_the_owner_in_another_instance(twins: Twins) -> None:
    twins.process()
    twins.world.start_long("b")
    twins.start()
    wait_for(lambda: "look b" in twins.world.log)
    twins.cancel()
    row = twins.end()
    assert (row.state, row.problem) == ("undone", errors.Cancelled(user="bob"))


def test_an_idle_runner_only_reads_now_and_then(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "IDLE", IDLE)
    seen: list[str] = []
    waits: list[float] = []
    clock = FakeClock()

    def waited(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            runner.stop()

    twins.database.read().__enter__().close()  # what a new connection asks for once does not count
    engines = [twins.database._writers, *([twins.database._readers] if twins.database.is_sqlite else [])]
    for engine in engines:  # on PostgreSQL both are one
        sa.event.listen(engine, "before_cursor_execute", lambda *event: seen.append(str(event[2])))
    runner = Runner(twins.database, [twins.kind], clock, signal=lambda: VirtualSignal(clock, waited))
    runner.loop()
    assert waits == [3.0] * 4
    assert len(seen) <= 2 * len(waits)
    assert not [sql for sql in seen if not sql.upper().startswith("SELECT")]


def test_settled_steps_follow_each_other_without_delay(twins: Twins) -> None:
    kind = twins.world.kind(*"abcdef")
    for name in "abcdef":
        twins.world.finish(name)
    waits: list[float | None] = []
    twins.start(runner=twins.runner(kind, signal=lambda: CountedSignal(waits)))
    assert twins.end().state == "done"
    assert not [seconds for seconds in waits if seconds not in (steps.POLL, steps.IDLE)]  # the loop's own


# -- SIGKILL at every crash point -------------------------------------------------------------------------

FORWARD = [f"job.{step}.{point}" for step in "abcd" for point in ("before_ask", "after_ask", "after_settled")]
BACK = [f"job.{step}.{point}" for step in "ba" for point in ("before_undo", "after_undo")]


def killed_at(twins: Twins, point: str) -> None:
    chosen = twins.folder / "crash"
    chosen.write_text(point)
    process = twins.process(DRYSTONE_CRASH_FILE=str(chosen))
    twins.start()
    assert process.wait(60) == -signal.SIGKILL
    assert (twins.folder / "crash.fired").exists()


def check_forward(twins: Twins, point: str) -> None:
    killed_at(twins, point)
    twins.runner()
    row = twins.end()
    assert (row.state, row.past, row.reason) == ("done", True, None)
    assert all(twins.world.is_done(step) for step in "abcd")
    assert twins.world.asks() == list("abcd")


def on_sqlite(tmp_path: pathlib.Path, opened: Opened) -> Twins:
    url = f"sqlite:///{tmp_path}/flows.sqlite"
    return Twins(opened(url), url, tmp_path)


Check = Callable[[Twins], None]


def run_on(twins: Twins, check: Check) -> None:
    try:
        check(twins)
    finally:
        twins.close()


@pytest.mark.parametrize("point", FORWARD)
def test_a_kill_at_any_point_ends_in_the_same_state(tmp_path: pathlib.Path, opened: Opened, point: str) -> None:
    run_on(on_sqlite(tmp_path, opened), lambda twins: check_forward(twins, point))


@pytest.mark.parametrize("point", FORWARD[6:9])
def test_a_kill_around_the_point_of_no_return_ends_in_the_same_state_on_postgresql(
    tmp_path: pathlib.Path, opened: Opened, postgres: Postgres, point: str
) -> None:
    url = postgres.fresh()
    run_on(Twins(opened(url), url, tmp_path), lambda twins: check_forward(twins, point))


@pytest.mark.parametrize("point", BACK)
def test_a_kill_while_undoing_ends_undone(tmp_path: pathlib.Path, opened: Opened, point: str) -> None:
    def check(twins: Twins) -> None:
        (twins.world.folder / "fail-c").touch()
        killed_at(twins, point)
        twins.runner()
        row = twins.end()
        assert (row.state, row.problem) == ("undone", errors.DiskBusy(disk_id="disk1", flow_id="other"))
        assert not any(twins.world.is_done(step) for step in "abcd")

    run_on(on_sqlite(tmp_path, opened), check)


# -- when the database goes away --------------------------------------------------------------------------


def test_flows_survive_a_database_that_goes_away(tmp_path: pathlib.Path, opened: Opened, postgres: Postgres) -> None:
    url = postgres.fresh()

    def check(twins: Twins) -> None:
        twins.world.start_long("b")
        twins.runner()
        twins.start()
        wait_for(lambda: "look b" in twins.world.log)
        postgres.kill()
        try:
            time.sleep(1.5)
            twins.world.finish("b")
            time.sleep(0.5)
        finally:
            postgres.start()
        assert twins.end().state == "done"

    run_on(Twins(opened(url), url, tmp_path), check)


def test_a_service_that_stumbles_in_on_move_tries_again(twins: Twins) -> None:
    troubles = [ZeroDivisionError(), ZeroDivisionError()]

    def on_move(*_: Any) -> None:
        if troubles and row_state() == "a":
            raise troubles.pop()

    def row_state() -> str:
        with twins.database.read() as session:
            found = session.execute(sa.select(flows.c.step)).first()
        return str(found[0]) if found else ""

    kind = twins.world.kind("a", "b", on_move=on_move)
    runner = twins.runner(kind)
    twins.start(runner=runner)
    assert twins.end().state == "done"
    assert troubles == []
