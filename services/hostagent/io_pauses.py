"""Guests with a lease that an I/O error stopped.

libvirt gave their leases up when they stopped, and would take one again at a resume without asking who had it since
(docs/adr/0021). So after a time such a guest is ended, and not left to wake up on disks that went on elsewhere. One
that met a full storage waits for room: its host writes there as before, so nobody takes it for dead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from services.hostagent import monitor, process
from services.hostagent.monitor import Monitors

LOOK_SECONDS = 2.0  # of one question to one monitor


class IoPauses:
    """`seconds`: that such a guest may stand still. They count from the first look that saw it, anew with each QEMU and
    with each start of the agent."""

    def __init__(self, monitors: Monitors, seconds: float) -> None:
        self._monitors, self._seconds = monitors, seconds
        self._since: dict[tuple[str, int], float] = {}

    def overdue(self, vm_ids: Iterable[str]) -> Iterator[tuple[str, float]]:
        """Those of these VMs that have stood still for too long, each with its seconds; each is told of before the next
        one is looked at."""
        before, self._since = self._since, {}
        for vm_id in vm_ids:
            found = process.find(vm_id)
            if found is None:
                continue
            key, now, failed = (vm_id, found.pid), time.monotonic(), self._has_failed(vm_id)
            if failed or (failed is None and key in before):
                since = self._since[key] = before.get(key, now)
                if failed and now - since >= self._seconds:
                    yield vm_id, now - since

    def _has_failed(self, vm_id: str) -> bool | None:
        """Whether a disk that failed stopped it; None: its monitor does not say."""
        try:
            if self._monitors.status(vm_id, LOOK_SECONDS) != "io-error":
                return False
            devices = self._monitors.ask(vm_id, "query-block", seconds=LOOK_SECONDS)
        except (monitor.Mute, monitor.Refused):
            return None
        return any(device.get("io-status") == "failed" for device in devices)
