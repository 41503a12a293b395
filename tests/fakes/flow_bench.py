"""One flow in virtual time: a real database, a world in a folder, and waits that take no time."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

from chassis import context
from chassis.clock import FakeClock
from chassis.database import Database
from chassis.flow import Flow, FlowRow
from chassis.step_runner import Worker
from chassis.steps import Runner
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
