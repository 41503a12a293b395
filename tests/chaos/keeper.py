"""What systemd does on real hosts: whatever is dead is started again."""

from __future__ import annotations

import time

from deploy.stack import wait
from deploy.stack.parts import Process
from deploy.stack.postgres import Postgres
from deploy.stack.room import RoomGone
from deploy.stack.stack import Stack

# Seconds for which libvirtd may be dead before somebody else starts it: the agent stops it for a moment when it mends
# libvirt's view of a VM, and systemd would not interfere with that.
STOPPED = 6.0


class Keeper:
    """Of one stack and its database. `resting`: victims that are meant to be dead for a moment."""

    def __init__(self, stack: Stack, postgres: Postgres | None) -> None:
        self.stack, self.postgres = stack, postgres
        self.host = stack.hosts["h1"]
        self.resting: set[str] = set()
        self._missing_since: float | None = None

    def tend(self) -> None:
        """Start what is dead and not meant to be."""
        if self.postgres is not None and "database" not in self.resting:
            self.postgres.start()
        if "rabbitmq" not in self.resting:
            self.stack.rabbitmq.start()
        self._tend(self.stack.services)
        if "host" not in self.resting:
            self._tend_host()

    def bring_back(self, seconds: float) -> None:
        """Until every process is ready."""
        libvirtd = "libvirtd" in self.resting
        self.resting.clear()
        if libvirtd and self.host.room.alive():
            self.host.start_libvirtd()
        processes = [*self.stack.services.values(), *self.stack.agents.values()]

        def ready() -> bool:
            self.tend()
            return all(process.ready() for process in processes)

        wait.until("all parts to be ready", ready, seconds, every=0.1)

    def _tend_host(self) -> None:
        if not self.host.room.alive():
            self.host.start()
        if "libvirtd" not in self.resting:
            self._tend_libvirtd()
        self._tend(self.stack.agents)

    def _tend(self, processes: dict[str, Process]) -> None:
        for name, process in processes.items():
            resting = "snapshots" if name == "snapshots" else "agent" if name == "h1" else ""
            if resting not in self.resting and not process.alive():
                process.launch()

    def _tend_libvirtd(self) -> None:
        try:
            self.host.libvirtd_pid()
            self._missing_since = None
        except RoomGone:
            now = time.monotonic()
            self._missing_since = self._missing_since or now
            if now - self._missing_since > STOPPED:
                self.host.start_libvirtd()
