"""What a piece of work needs around it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from chassis.clock import Clock
from chassis.database import Database
from contracts.promise import Rpc
from services.inventory import powers, store
from services.inventory.peers import Peers
from services.inventory.settings import InventorySettings

T = TypeVar("T")
_MOST_STRANGERS = 1000


@dataclass(frozen=True)
class Scene:
    """Made once per process. `strangers`: unknown ids that were logged already."""

    database: Database
    clock: Clock
    peers: Peers
    settings: InventorySettings
    log: Any
    strangers: set[str] = field(default_factory=set)

    def now(self) -> dt.datetime:
        return self.clock.now()

    def write(self, work: Callable[[Session], T]) -> T:
        return store.write(self.database, work)

    def until(self, promise: Rpc) -> dt.datetime:
        """When an ask that is made now cannot be under way any more: its deadline, and time to give up."""
        return self.now() + dt.timedelta(seconds=promise.deadline + 5)

    @property
    def patience(self) -> powers.Patience:
        return powers.Patience(shut_down=dt.timedelta(seconds=self.settings.shut_down_patience))

    def is_new_stranger(self, id_: str) -> bool:
        """True the first time that this unknown id is seen."""
        if id_ in self.strangers or len(self.strangers) >= _MOST_STRANGERS:
            return False
        self.strangers.add(id_)
        return True
