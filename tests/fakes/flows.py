"""A small world in a folder, steps that change it, and a process that runs flows on it.

The world is what a flow's asks change: `done/<step>` exists once the step happened. It keeps the highest claim number
that it saw and refuses asks under a lower one, as a host agent does. `log` has one line per look, ask and undo.
"""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

from chassis import flow
from chassis.clock import FakeClock
from chassis.database import Database
from chassis.steps import Flow, FlowKind, Look, Step
from chassis.tables import frame
from contracts import errors

# What tests.fakes.flow_process runs.
KIND_NAMES = ("a", "b", "c", "d")
KIND_OPTIONS: dict[str, dict[str, Any]] = {"c": {"no_way_back": True}}

Act = Callable[[Flow], Any]


def _nothing(_flow: Flow) -> None:
    """What happens where a test asks for nothing."""


class World:
    """`before["ask b"]` is called before b is asked for, `after["ask b"]` after; either may raise."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.before: dict[str, Act] = {}
        self.after: dict[str, Act] = {}
        (folder / "done").mkdir(parents=True, exist_ok=True)

    def step(self, name: str, **options: Any) -> Step:
        options.setdefault("patience", 0.05)
        return Step(name, settled=self._look(name), ask=self._ask(name), undo=self._undo(name), **options)

    def kind(self, *names: str, on_move: Any = None, **options: dict[str, Any]) -> FlowKind:
        """`kind("a", "b", b={"no_way_back": True})`"""
        return FlowKind("job", tuple(self.step(name, **options.get(name, {})) for name in names), on_move)

    def is_done(self, name: str) -> bool:
        return (self.folder / "done" / name).exists()

    def finish(self, name: str) -> None:
        (self.folder / "done" / name).touch()
        (self.folder / f"busy-{name}").unlink(missing_ok=True)

    def start_long(self, name: str) -> None:
        """From now on this step is under way, until `finish`."""
        (self.folder / f"busy-{name}").touch()

    def hold(self, name: str) -> None:
        """Who asks for this step next (and nobody after) stays inside the ask until `let_go`."""
        (self.folder / f"hold-{name}").touch()

    def let_go(self, name: str) -> None:
        (self.folder / f"held-{name}").unlink()

    def held(self, name: str) -> bool:
        return (self.folder / f"held-{name}").exists()

    @property
    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def asks(self) -> list[str]:
        """The names of what was asked for and undone, in order: ["a", "b", "undo b"]."""
        words = [line.removeprefix("ask ").split(" claim ")[0] for line in self.log]
        return [word for word in words if not word.startswith(("look ", "refused "))]

    def write(self, line: str) -> None:
        with (self.folder / "log").open("a") as file:
            file.write(line + "\n")

    def _act(self, word: str, flow_: Flow, act: Callable[[], None]) -> None:
        self.before.get(word, _nothing)(flow_)
        act()
        self.after.get(word, _nothing)(flow_)

    def _look(self, name: str) -> Callable[[Flow], Look]:
        def look(flow_: Flow) -> Look:
            self.write(f"look {name}")
            self.before.get(f"look {name}", _nothing)(flow_)
            if self.is_done(name):
                return Look.SETTLED
            return Look.RUNNING if (self.folder / f"busy-{name}").exists() else Look.ASK

        return look

    def _ask(self, name: str) -> Callable[[Flow], None]:
        def ask(flow_: Flow) -> None:
            self._stay_if_held(name)
            self._refuse_old(name, flow_)
            self.write(f"ask {name} claim {flow_.claim}")
            self._act(f"ask {name}", flow_, lambda: None if self._busy(name) else self.finish(name))

        return ask

    def _undo(self, name: str) -> Callable[[Flow], Look | None]:
        def undo(flow_: Flow) -> Look | None:
            self.write(f"undo {name}")
            self._act(f"undo {name}", flow_, lambda: (self.folder / "done" / name).unlink(missing_ok=True))
            return None

        return undo

    def _busy(self, name: str) -> bool:
        return (self.folder / f"busy-{name}").exists()

    def _stay_if_held(self, name: str) -> None:
        held = self.folder / f"held-{name}"
        try:
            (self.folder / f"hold-{name}").rename(held)
        except FileNotFoundError:
            return
        while held.exists():
            time.sleep(0.01)

    def _refuse_old(self, name: str, flow_: Flow) -> None:
        path = self.folder / "highest"
        highest = int(path.read_text()) if path.exists() else 0
        if flow_.claim < highest:
            self.write(f"refused {name} claim {flow_.claim}")
            raise errors.StaleClaim(claim=flow_.claim, highest=highest, disk_id=flow_.subject)
        path.write_text(str(flow_.claim))


class VirtualSignal:
    """A signal in virtual time: waiting takes none, but moves the clock. `on_wait` sees each wait's seconds."""

    def __init__(self, clock: FakeClock, on_wait: Callable[[float], object] = lambda _: None) -> None:
        self._clock = clock
        self._on_wait = on_wait
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None, "every wait has a deadline"
        if not self._set:
            self._clock.advance(timeout)
            self._on_wait(timeout)
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False


class CountedSignal(threading.Event):
    """Writes down each wait that it is asked for."""

    def __init__(self, waits: list[float | None]) -> None:
        super().__init__()
        self._waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        self._waits.append(timeout)
        return super().wait(timeout)


def make_tables(database: Database) -> None:
    with database.write() as session:
        frame.create_all(session.connection())


def row_of(database: Database, flow_id: str) -> flow.FlowRow:
    with database.read() as session:
        return flow.get(session, flow_id)


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Until `what` answers something true."""
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, f"not within {seconds} s"
        time.sleep(0.02)
    return found


def wait_for_end(database: Database, flow_id: str, seconds: float = 60.0) -> flow.FlowRow:
    """Until the flow is done, undone or stuck."""
    wait_for(lambda: not row_of(database, flow_id).active, seconds)
    return row_of(database, flow_id)
