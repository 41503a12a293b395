"""What the flows and the door of this service share: the frame, the calls to others, the kinds of flows."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from chassis.database import Database
from chassis.frame import Frame
from chassis.steps import Runner
from services.snapshots.peers import Peers
from services.snapshots.settings import SnapshotsSettings


@dataclass
class Desk:
    """One per process, made by the door's `prepare`. `gather`: a function of many things, some at the same time."""

    frame: Frame
    peers: Peers
    gather: Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]] = lambda fn, items: [fn(item) for item in items]

    @property
    def db(self) -> Database:
        return self.frame.db

    @property
    def runner(self) -> Runner:
        return cast(Runner, self.frame.runner)

    @property
    def settings(self) -> SnapshotsSettings:
        return cast(SnapshotsSettings, self.frame.settings)

    def now(self) -> datetime.datetime:
        return self.frame.clock.now()
