"""What an administrator may set of the inventory; every default has its reason beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chassis.settings import FrameSettings, between, setting


@dataclass(frozen=True)
class InventorySettings(FrameSettings):
    section: ClassVar[str] = "inventory"

    heartbeat_interval: float = setting(
        5.0, "seconds between two heartbeats of an agent; the agents are set to the same", check=between(0.1, 60)
    )
    heartbeat_grace: int = setting(
        3, "heartbeats that may be missed before a host counts as non_responsive", check=between(1, 100)
    )
    clock_limit: float = setting(
        2.0, "seconds a host's clock may be off before it takes no dangerous request", check=between(0.1, 60)
    )
    tidy_interval: float = setting(
        30.0, "seconds between two looks for work that an unknown answer left open", check=between(0.1, 3600)
    )
    copy_interval: float = setting(
        1.0, "seconds between two looks how far the copies of disks are", check=between(0.1, 60)
    )
    facts_interval: float = setting(
        60.0, "seconds between two looks at the sizes of a storage domain", check=between(0.1, 86400)
    )
    shut_down_patience: float = setting(
        300.0, "seconds a guest may take to shut down before it counts as running again", check=between(1, 86400)
    )
