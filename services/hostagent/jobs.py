"""The block jobs that we began: what is told while they run.

One thread; it sleeps without a clock while no job of ours runs. While one does it asks QEMU once a second and tells
`job_changed` when something moved. libvirt's events only wake it: what a job's end means is read from QEMU's chain
("cancelled" and "no space left" look the same in libvirt: FAILED without a reason).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from chassis import logs
from contracts import errors
from services.hostagent import views
from services.hostagent.journal import Journal
from services.hostagent.locks import Still
from services.hostagent.look import Eyes

EVERY = 1.0  # seconds between two looks at a running job
GRACE = 3.0  # seconds after the ask in which a job may not be there yet

Tell = Callable[[str, dict[str, Any]], None]
_log = logs.get("jobs")


class Jobs:
    def __init__(self, journal: Journal, eyes: Eyes, tell: Tell, still: Still) -> None:
        self._journal, self._eyes, self._tell, self._still = journal, eyes, tell, still
        self._wake = threading.Event()
        self._last: dict[str, dict[str, Any]] = {}

    def start(self) -> None:
        threading.Thread(target=self._run, name="jobs", daemon=True).start()

    def begin(self, request: dict[str, Any], target: str) -> None:
        """Journalled before the ask, so that an agent that dies in between still reports the job."""
        known = self._journal.get("jobs", request["disk"]["disk_id"]) or {}
        entry = {
            "vm_id": request["vm_id"],
            "disk": request["disk"],
            "flow_id": request["claim"]["flow_id"],
            "base_id": request["base_id"],
            "top_id": request["top_id"],
            "child_id": request["child_id"],
            "pull": bool(request.get("pull")),
            "claim": request["claim"]["number"],
            "target": target,
            "begun": known.get("begun") or time.time(),
            "cancelled": False,
        }
        self._journal.put("jobs", request["disk"]["disk_id"], entry)

    def of(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """What this flow began on the disk, as it was journalled."""
        entry = self._journal.get("jobs", request["disk"]["disk_id"])
        return entry if entry and entry["flow_id"] == request["claim"]["flow_id"] else None

    def refuse_newer(self, disk_id: str, claim: dict[str, Any]) -> None:
        """Raises StaleClaim when another flow's ask began the disk's job after this claim was made: numbers of claims
        rise over all flows."""
        entry = self._journal.get("jobs", disk_id) or {}
        newer = entry.get("claim", 0)
        if entry and entry["flow_id"] != claim["flow_id"] and newer > claim["number"]:
            raise errors.StaleClaim(claim=claim["number"], highest=newer, disk_id=disk_id)

    def cancelled(self, disk_id: str) -> None:
        entry = self._journal.get("jobs", disk_id)
        if entry:
            self._journal.put("jobs", disk_id, {**entry, "cancelled": True})

    def drop(self, disk_id: str) -> None:
        """Forget a job that never began."""
        self._last.pop(disk_id, None)
        self._journal.put("jobs", disk_id, None)

    def wake(self) -> None:
        self._wake.set()

    def _run(self) -> None:
        while True:
            jobs = self._journal.all("jobs")
            if not jobs:
                self._wake.wait()
            self._wake.clear()
            for disk_id, job in jobs.items():
                self._look(disk_id, job)
            # a wake-up (ready, ended) is looked at once; otherwise once a second
            if jobs:
                self._wake.wait(EVERY)

    def _look(self, disk_id: str, job: dict[str, Any]) -> None:
        self._still.give_way()
        try:
            qemu = self._eyes.qemu(job["vm_id"], job["disk"])
        except Exception:
            _log.exception("a look at a block job failed", disk_id=disk_id)
            return
        if qemu.state == "unreachable":
            return
        if qemu.works_on(views.ends_of(job)):
            self._running(disk_id, job, qemu)
        elif time.time() - job["begun"] > GRACE or views.ends_of(job).gone not in qemu.ids:
            self._ended(disk_id, job, qemu)

    def _running(self, disk_id: str, job: dict[str, Any], qemu: views.Qemu) -> None:
        if qemu.job is None:
            return
        last, now = self._last.get(disk_id), time.monotonic()
        moved = {"status": "ready" if qemu.job.ready else "running", "cur": qemu.job.cur, "end": qemu.job.end}
        if last and moved.items() <= last.items():
            return
        if last and last["status"] == moved["status"] and now - last["at"] < EVERY * 0.9:
            return  # woken early: one piece of news a second is enough
        rate = max(0, qemu.job.cur - last["cur"]) / (now - last["at"]) if last else 0.0
        self._last[disk_id] = {**moved, "at": now}
        self._news(disk_id, job, {**moved, "rate": int(rate)})

    def _ended(self, disk_id: str, job: dict[str, Any], qemu: views.Qemu) -> None:
        last = self._last.pop(disk_id, {"cur": 0, "end": 0})
        merged = qemu.alive and views.ends_of(job).done(qemu.ids)
        status = "completed" if merged else "cancelled" if job["cancelled"] else "failed"
        cur = last["end"] if merged else last["cur"]
        self._news(disk_id, job, {"status": status, "cur": cur, "end": last["end"], "rate": 0})
        self._journal.put("jobs", disk_id, None)

    def _news(self, disk_id: str, job: dict[str, Any], moved: dict[str, Any]) -> None:
        self._tell("job_changed", {"vm_id": job["vm_id"], "disk_id": disk_id, **moved})
