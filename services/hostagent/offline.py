"""Merges of VMs that are down: begun by one ask, followed by looks and news, ended by a cancel. Plain threads.

The work is a process of its own that holds the VM's lease (offline_writer.py). Nothing of it is remembered across a
death of the agent: it dies with it, the next ask begins anew from what the storage shows. What it failed with is told
to the next ask, once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from chassis import logs
from contracts import errors
from services.hostagent import process, under_lease, views
from services.hostagent.work import Parts, Request

FIRST_SECONDS = 3.0  # for refusals, which come early, and small merges
END_SECONDS = 15.0  # from a kill until its processes are gone
EVERY = 1.0  # seconds between two pieces of news
_ROOT = str(Path(__file__).resolve().parents[2])
_WRITER = (sys.executable, "-m", "services.hostagent.offline_writer")

Tell = Callable[[str, dict[str, Any]], None]
_log = logs.get("offline")


@dataclass
class Run:
    """One merge that is under way, or ended and not told yet."""

    request: Request
    over: threading.Event = field(default_factory=threading.Event)
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False
    cur: int = 0
    end: int = 0
    problem: errors.Problem | None = None
    talking: threading.Lock = field(default_factory=threading.Lock)  # its pipe is written to, or closed

    @property
    def ends(self) -> views.Ends:
        return views.ends_of(self.request)


class Offline:
    def __init__(self, parts: Parts, tell: Tell) -> None:
        self._parts, self._tell = parts, tell
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        parts.eyes.offline = self.facts

    def ask(self, request: Request) -> dict[str, Any]:
        """Begin it, or find it under way. Done, or failed before: said at once."""
        disk = request["disk"]
        with self._parts.turn(request):
            run = self._under_way(request)
            if run is None:
                self._refuse_running(request)
                run = Run(request)
                with self._lock:
                    self._runs[disk["disk_id"]] = run
                threading.Thread(target=self._run, args=(run,), name="offline", daemon=True).start()
        if run.over.wait(FIRST_SECONDS):
            self._forget(disk["disk_id"], run)
            if run.problem is not None:
                raise run.problem
        return {}

    def cancel(self, request: Request) -> None:
        """End the merge with the request's ends. Another one is left alone: ForeignJob. Within the disk's turn."""
        disk_id = request["disk"]["disk_id"]
        run = self._runs.get(disk_id)
        if run is None:
            if process.find(request["vm_id"]) is None:
                self._parts.storage.wait_idle(request["disk"]["domain"], disk_id)  # of an agent that died
            return
        if not run.over.is_set():
            if run.ends != views.ends_of(request):
                raise errors.ForeignJob(disk_id=disk_id, job=_named(run))
            self._stop(run)
        self._forget(disk_id, run)

    def limit(self, request: Request) -> bool:
        """Whether there is a merge under way, which is held to so many bytes per second from now on. Of another flow:
        ForeignJob."""
        disk_id = request["disk"]["disk_id"]
        run = self._runs.get(disk_id)
        if run is None or run.over.is_set():
            return False
        if run.request["claim"]["flow_id"] != request["claim"]["flow_id"]:
            raise errors.ForeignJob(disk_id=disk_id, job=_named(run))
        run.request = {**run.request, "bandwidth": request["bandwidth"]}
        _say_limit(run)
        return True

    def facts(self, disk_id: str) -> dict[str, Any] | None:
        """contracts.hostagent.BlockJob of a merge that is under way."""
        run = self._runs.get(disk_id)
        if run is None or run.over.is_set():
            return None
        base, top, child, pull = run.ends
        numbers = {"cur": run.cur, "end": run.end, "speed": run.request["bandwidth"]}
        ends = {"base_id": base, "top_id": top, "child_id": child}
        kind = "offline_pull" if pull else "offline"
        return {"type": kind, "status": "running", "ready": False, **numbers, **ends}

    # -- one merge --

    def _under_way(self, request: Request) -> Run | None:
        """The run of these very ends: it goes on, or its flow was not told yet how it ended. Others that are over are
        forgotten."""
        disk_id = request["disk"]["disk_id"]
        run = self._runs.get(disk_id)
        if run is None:
            return None
        same = run.ends == views.ends_of(request)
        if not run.over.is_set():
            if not same:
                raise errors.ForeignJob(disk_id=disk_id, job=_named(run))
            return run
        if same and run.request["claim"]["flow_id"] == request["claim"]["flow_id"]:
            return run
        self._forget(disk_id, run)
        return None

    def _refuse_running(self, request: Request) -> None:
        vm_id, disk = request["vm_id"], request["disk"]
        if process.find(vm_id) is not None:
            raise errors.VmWrongState(vm_id=vm_id, state="running", action="an offline merge", needs="down")
        for other in process.everyone():
            if self._parts.eyes.qemu(other, disk).layers:
                raise errors.VolumeInUse(volume_id=disk["disk_id"], by=f"VM {other}, which runs on it")

    def _forget(self, disk_id: str, run: Run) -> None:
        with self._lock:
            if self._runs.get(disk_id) is run:
                del self._runs[disk_id]

    def _run(self, run: Run) -> None:
        disk_id = run.request["disk"]["disk_id"]
        _log.info("an offline merge begins", disk_id=disk_id, vm_id=run.request["vm_id"])
        try:
            self._work(run)
        except errors.Problem as problem:
            run.problem = problem
        except Exception as fault:
            _log.exception("an offline merge failed", disk_id=disk_id)
            run.problem = errors.JobFailed(disk_id=disk_id, reason=str(fault))
        status = "cancelled" if run.stopped else "failed" if run.problem else "completed"
        run.over.set()
        cur = run.end if status == "completed" else run.cur
        self._news(run, status, cur, 0)
        _log.info(f"an offline merge is {status}", disk_id=disk_id, reason=str(run.problem or ""))

    def _work(self, run: Run) -> None:
        request, lease = run.request, run.request["lease"]
        offset = self._parts.leasing.offset_for_writer(request["vm_id"], lease)
        order = {
            "vm": request["vm_id"],
            "space": lease["domain"],
            "offset": offset,
            "domain": request["disk"]["domain"],
            "image": request["disk"]["disk_id"],
            "base": request["base_id"],
            "top": request["top_id"],
            "child": request["child_id"],
            "between": request["between"],
            "pull": request["pull"],
            "below": request["below_id"],
            "bandwidth": request["bandwidth"],
            "agent": os.getpid(),
        }
        path = os.pathsep.join(p for p in (_ROOT, os.environ.get("PYTHONPATH", "")) if p)
        words = [*_WRITER, json.dumps(order)]
        if run.stopped:
            return
        env = {**os.environ, "PYTHONPATH": path}
        writer = under_lease.start(
            lease["domain"], request["vm_id"], offset, words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with writer:
            run.process = writer
            if run.stopped:
                _kill(writer)
            if run.request["bandwidth"] != order["bandwidth"]:  # it came while the writer was begun
                _say_limit(run)
            try:
                self._hear(run, writer)
            finally:
                with run.talking:  # who wrote to its number afterwards would hit some other file
                    _input_of(writer).close()

    def _hear(self, run: Run, writer: subprocess.Popen[bytes]) -> None:
        """Its lines until it ends; raises what it failed with."""
        told, last = 0.0, 0
        for line in writer.stdout or ():
            said = json.loads(line)
            if "error" in said:
                raise errors.from_wire(said["error"])
            if "ok" in said:
                return
            if "lost" in said:
                disk_id, top_id = run.request["disk"]["disk_id"], run.request["top_id"]
                _log.warning("dirty bitmaps end with an offline merge", disk_id=disk_id, top_id=top_id, **said)
                continue
            run.cur, run.end, now = said["cur"], said["end"], time.monotonic()
            if now - told >= EVERY:
                rate = int(max(0, run.cur - last) / (now - told)) if told else 0
                self._news(run, "running", run.cur, rate)
                told, last = now, run.cur
        writer.wait()
        if not run.stopped:
            reason = f"its writer ended with {writer.returncode} (that happens when the storage, or sanlock, is lost)"
            raise errors.JobFailed(disk_id=run.request["disk"]["disk_id"], reason=reason)

    def _stop(self, run: Run) -> None:
        """Raises DiskBusy while a process of it does not end."""
        run.stopped = True
        if run.process is not None:
            _kill(run.process)
        if not run.over.wait(END_SECONDS):
            request = run.request
            raise errors.DiskBusy(disk_id=request["disk"]["disk_id"], flow_id=request["claim"]["flow_id"])

    def _news(self, run: Run, status: str, cur: int, rate: int) -> None:
        disk_id, vm_id = run.request["disk"]["disk_id"], run.request["vm_id"]
        moved = {"status": status, "cur": cur, "end": run.end, "rate": rate}
        self._tell("job_changed", {"vm_id": vm_id, "disk_id": disk_id, **moved})


def _named(run: Run) -> str:
    base, top, _, pull = run.ends
    return f"offline pull of {base} into {top}" if pull else f"offline merge of {top} into {base}"


def _say_limit(run: Run) -> None:
    """A writer that has ended (its pipe is broken, or closed) has nothing to be limited."""
    with run.talking, contextlib.suppress(BrokenPipeError, ValueError):
        if run.process is not None:
            line = json.dumps({"bandwidth": run.request["bandwidth"]}) + "\n"
            os.write(_input_of(run.process).fileno(), line.encode())  # past its buffer, which would keep what failed


def _input_of(writer: subprocess.Popen[bytes]) -> IO[bytes]:
    return cast(IO[bytes], writer.stdin)


def _kill(writer: subprocess.Popen[bytes]) -> None:
    """The writer and its qemu-img: they are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(writer.pid, signal.SIGKILL)
