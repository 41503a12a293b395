"""What a service finds around it: everything that is not its own domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chassis.bus_client import Client
    from chassis.clock import Clock
    from chassis.database import Database
    from chassis.health import Health
    from chassis.settings import FrameSettings


@dataclass
class Frame:
    """Made once by `chassis.run.serve`; reached as `self.frame` in a service.

    `runner` is the flow runner of services that declare flows. `own` is the service's: what it made in `prepare`.
    """

    settings: FrameSettings
    clock: Clock
    log: Any
    client: Client
    health: Health
    database: Database | None = None
    runner: Any = None
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def db(self) -> Database:
        """The database of a service that has one."""
        if self.database is None:
            raise RuntimeError("this service was started without a database")
        return self.database
