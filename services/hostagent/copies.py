"""Copies of whole disks, which take their time: begun by one ask, followed by the next ones. Plain threads.

An ask finds the copy done on the storage, or under way, or begins it. What it failed with is told once; the ask after
that begins anew. Nothing is remembered across a death of the agent: the copy dies with it, the next ask begins anew.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overdue
from typing import Any

from contracts import errors
from services.hostagent import process
from services.hostagent.work import Parts, Request

MOST = 4  # at once; others wait for their turn
FIRST_SECONDS = 2.0  # for small copies and early refusals
LONGEST = 7 * 86_400.0  # seconds for one copy
END_SECONDS = 10.0

Key = tuple[str, str]


class Copies:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._running: dict[Key, Future[dict[str, Any]]] = {}
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="copy")

    def ask(self, request: Request) -> dict[str, Any]:
        """contracts.hostagent.CopyFacts."""
        disk, volume_id = request["disk"], request["volume_id"]
        key = (disk["disk_id"], volume_id)
        running = self._of(key, request)
        try:
            running.result(FIRST_SECONDS)
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
            if not running.cancel():
                self._parts.storage.stop_copy(disk["domain"], disk["disk_id"])
                with contextlib.suppress(Overdue):  # then the deletion finds it under way and is refused
                    running.exception(END_SECONDS)
            if running.done():  # else the next deletion has to find it, to stop it
                self._forget(key, running)

    def _of(self, key: Key, request: Request) -> Future[dict[str, Any]]:
        """The copy that is under way, or a new one (which finds a finished one on the storage)."""
        with self._lock:
            running = self._running.get(key)
        # one that ended well long ago proves nothing now: the storage is looked at again
        if running is not None and not _ended_well(running):
            return running
        self._refuse_plugged(request["source"])  # without the lock: it looks at every QEMU
        with self._lock:
            running = self._running.get(key)
            if running is None or _ended_well(running):
                running = self._running[key] = self._threads.submit(self._copy, request)
            return running

    def _forget(self, key: Key, running: Future[dict[str, Any]]) -> None:
        with self._lock:
            if self._running.get(key) is running:
                del self._running[key]

    def _copy(self, request: Request) -> dict[str, Any]:
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
            deadline=LONGEST,
        )

    def _refuse_plugged(self, source: dict[str, Any]) -> None:
        for vm_id in process.everyone():
            if self._parts.eyes.qemu(vm_id, source).layers:
                raise errors.VolumeInUse(volume_id=source["disk_id"], by=f"VM {vm_id}, which runs on it")

    def _progress(self, request: Request) -> dict[str, int]:
        """How much is written by now, and at most how much there is to write."""
        disk, source = request["disk"], request["source"]
        copied = self._parts.storage.look_copy(disk["domain"], disk["disk_id"], request["volume_id"])["copied"]
        volumes = self._parts.storage.volumes(source["domain"], source["disk_id"])["volumes"]
        return {"copied": copied, "total": max(copied, sum(one["actual_size"] for one in volumes))}


def _ended_well(running: Future[dict[str, Any]]) -> bool:
    return running.done() and not running.cancelled() and running.exception() is None
