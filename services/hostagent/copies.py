"""Copies of whole disks, which take their time: begun by one ask, followed by the next ones. Plain threads.

An ask finds the copy done on the storage, or under way, or begins it. What it failed with is told once; the ask after
that begins anew. Nothing is remembered across a death of the agent: the copy dies with it, the next ask begins anew.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overdue
from dataclasses import dataclass
from typing import Any

from contracts import errors
from services.hostagent.work import Parts, Request

MOST = 4  # at once; others wait for their turn
FIRST_SECONDS = 2.0  # for small copies and early refusals
LONGEST = 7 * 86_400.0  # seconds for one copy
END_SECONDS = 10.0

Key = tuple[str, str]


@dataclass(frozen=True)
class Copy:
    """One that was begun. `stopped` is set when its disk is to be deleted."""

    ends: Future[dict[str, Any]]
    stopped: threading.Event

    def ended_well(self) -> bool:
        return self.ends.done() and not self.ends.cancelled() and self.ends.exception() is None


class Copies:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._running: dict[Key, Copy] = {}
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="copy")

    def ask(self, request: Request) -> dict[str, Any]:
        """contracts.hostagent.CopyFacts."""
        disk, volume_id = request["disk"], request["volume_id"]
        key = (disk["disk_id"], volume_id)
        running = self._of(key, request)
        try:
            running.ends.result(FIRST_SECONDS)
        except Overdue:
            return {"state": "copying", **self._progress(request)}
        except Exception:
            self._forget(key, running)
            raise
        self._forget(key, running)
        return {"state": "done", **self._progress(request)}

    def stop(self, disk: dict[str, Any]) -> None:
        """End the copies into a disk that is to be deleted."""
        with self._lock:
            mine = {key: running for key, running in self._running.items() if key[0] == disk["disk_id"]}
        for key, running in mine.items():
            if not running.ends.cancel():
                self._parts.storage.stop_copy(disk["domain"], disk["disk_id"], running.stopped)
                with contextlib.suppress(Overdue):  # then the deletion finds it under way and is refused
                    running.ends.exception(END_SECONDS)
            if running.ends.done():  # else the next deletion has to find it, to stop it
                self._forget(key, running)

    def _of(self, key: Key, request: Request) -> Copy:
        """The copy that is under way, or a new one (which finds a finished one on the storage)."""
        with self._lock:
            running = self._running.get(key)
        # one that ended well long ago proves nothing now: the storage is looked at again
        if running is not None and not running.ended_well():
            return running
        refuse_plugged(self._parts, request["source"])  # without the lock: it looks at every QEMU
        with self._lock:
            running = self._running.get(key)
            if running is None or running.ended_well():
                stopped = threading.Event()
                running = self._running[key] = Copy(self._threads.submit(self._copy, request, stopped), stopped)
            return running

    def _forget(self, key: Key, running: Copy) -> None:
        with self._lock:
            if self._running.get(key) is running:
                del self._running[key]

    def _copy(self, request: Request, stopped: threading.Event) -> dict[str, Any]:
        source, disk = request["source"], request["disk"]
        # as before a start: a merge that died with its QEMU may have left a header that names too little
        self._parts.storage.put_back(source["domain"], source["disk_id"])
        return self._parts.storage.copy_volume(
            disk["domain"],
            disk["disk_id"],
            request["volume_id"],
            source["domain"],
            source["disk_id"],
            request["shared"],
            stopped=stopped,
            deadline=LONGEST,
        )

    def _progress(self, request: Request) -> dict[str, int]:
        """How much is written by now, and at most how much there is to write."""
        disk, source = request["disk"], request["source"]
        copied = self._parts.storage.look_copy(disk["domain"], disk["disk_id"], request["volume_id"])["copied"]
        volumes = self._parts.storage.volumes(source["domain"], source["disk_id"])["volumes"]
        return {"copied": copied, "total": max(copied, sum(one["actual_size"] for one in volumes))}


def refuse_plugged(parts: Parts, disk: dict[str, Any]) -> None:
    """Raises VolumeInUse when a QEMU of this host has the disk."""
    vm_id = parts.eyes.user(disk)
    if vm_id is not None:
        raise errors.VolumeInUse(volume_id=disk["disk_id"], by=f"VM {vm_id}, which runs on it")
