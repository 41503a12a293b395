"""Who works on what: a lock per disk and per VM, and the gate that a repair of libvirtd closes; and who gives way to a
guest that stands still. Plain threads.

Order: disk, then VM, then gate. Every wait has an end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from contracts import errors


class Named:
    """Locks that exist while somebody holds or wants them; each knows its holder."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._holders: dict[str, str] = {}

    @contextlib.contextmanager
    def hold(self, name: str, holder: str, seconds: float) -> Iterator[None]:
        """Raises DiskBusy with the present holder when it is not free within so many seconds."""
        with self._condition:
            if not self._condition.wait_for(lambda: name not in self._holders, seconds):
                raise errors.DiskBusy(disk_id=name, flow_id=self._holders[name])
            self._holders[name] = holder
        try:
            yield
        finally:
            with self._condition:
                del self._holders[name]
                self._condition.notify_all()


class GateClosed(Exception):
    """Somebody repairs libvirtd, or asks did not end in time for a repair."""


class Gate:
    """Asks of libvirt pass together; a repair, which restarts libvirtd, passes alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextlib.contextmanager
    def together(self, seconds: float) -> Iterator[None]:
        with self._condition:
            if not self._condition.wait_for(lambda: not self._alone, seconds):
                raise GateClosed("libvirtd is being repaired")
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self, seconds: float) -> Iterator[None]:
        """Waits for those inside; while it waits no new ones come in."""
        limit = time.monotonic() + seconds
        with self._condition:
            if not self._condition.wait_for(lambda: not self._alone, seconds):
                raise GateClosed("another repair is under way")
            self._alone = True
            if not self._condition.wait_for(lambda: self._inside == 0, max(0.0, limit - time.monotonic())):
                self._open()
                raise GateClosed("an ask of libvirt does not end")
        try:
            yield
        finally:
            with self._condition:
                self._open()

    def _open(self) -> None:
        self._alone = False
        self._condition.notify_all()


class Still:
    """Guests that stand still for a pivot. What else this process has to do waits that moment: a look at another VM
    takes libvirtd, QEMU's monitor and the processor from the pause, and lengthens it.

    No lock: nobody is kept out for longer than `patience` seconds, neither by one pause nor by many in a row.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self._patience = patience
        self._condition = threading.Condition()
        self._pauses: list[float] = []  # when each began

    @contextlib.contextmanager
    def stand(self) -> Iterator[None]:
        began = time.monotonic()
        with self._condition:
            self._pauses.append(began)
        try:
            yield
        finally:
            with self._condition:
                self._pauses.remove(began)
                self._condition.notify_all()

    def give_way(self) -> None:
        """Wait until no guest stands still, but not for one that has for long."""
        limit = time.monotonic() + self._patience
        with self._condition:
            while (left := min(limit, self._end()) - time.monotonic()) > 0:
                self._condition.wait(left)

    def _end(self) -> float:
        return max(self._pauses, default=float("-inf")) + self._patience
