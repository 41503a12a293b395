"""The storage as the hypervisor process sees it: calls that can hang run in child processes.

One long-lived child per domain directory and lane. A child that misses its deadline is killed and abandoned (a
process on a dead NFS may not die at once) and the next request gets a new one. Lanes keep short work from
waiting for long work: the mark of a pivot must never stand behind a scan.

Thread-safe; plain threads only. Every call is idempotent, so a child that *dies* (not: hangs) is replaced and
asked once more within the same deadline. A call that runs out of time says StorageTimeout: outcome unknown.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from contracts import errors
from services.hostagent import layout

QUICK = "quick"  # looks and marks: milliseconds
MAKE = "make"  # qemu-img create, new domains
SLOW = "slow"  # whole-domain scans and what needs one

MAX_REPLY = 256 * 2**20  # bytes of one answer: a scan of 100,000 volumes takes about 50 MiB
MAX_CHILDREN = 48  # idle ones beyond this are ended, least recently used first
_ROOT = str(Path(__file__).resolve().parents[2])

Domain = dict[str, Any]  # {"id": uuid, "path": mount point}, contracts.hostagent.DomainRef


# budget: every storage call of the agent, each with its promise
class Storage:
    """All storage calls of the agent. `deadline` is the default number of seconds for one call.

    Every method raises the Problems that contracts/hostagent.py declares for it, StorageTimeout above all.
    `environment` is added to the children's.
    """

    def __init__(self, deadline: float = 20.0, environment: dict[str, str] | None = None) -> None:
        self._deadline = deadline
        self._environment = environment or {}
        self._children: dict[tuple[str, str], _Child] = {}
        self._gone: list[_Child] = []
        self._lock = threading.Lock()

    # -- domains --

    def create_domain(
        self, domain: Domain, name: str, data_center_id: str, *, deadline: float | None = None
    ) -> dict[str, Any]:
        """DomainFacts of the domain, made now or before."""
        args = {"domain": domain, "name": name, "data_center_id": data_center_id}
        return self._ask(MAKE, "create_domain", args, deadline)

    def look_domain(self, domain: Domain, *, deadline: float | None = None) -> dict[str, Any]:
        """DomainFacts."""
        return self._ask(QUICK, "look_domain", {"domain": domain}, deadline)

    def delete_domain(self, domain: Domain, *, deadline: float | None = None) -> None:
        """Remove an empty domain; StillInUse while it has images."""
        self._ask(MAKE, "delete_domain", {"domain": domain}, deadline)

    def scan(self, domain: Domain, *, deadline: float | None = None) -> dict[str, Any]:
        """DomainScan."""
        return self._ask(SLOW, "scan", {"domain": domain}, deadline)

    def referrers(
        self,
        domain: Domain,
        image: str,
        volumes: Sequence[str],
        but: Sequence[str] = (),
        *,
        deadline: float | None = None,
    ) -> dict[str, list[str]]:
        """Scan the whole domain once: who refers to each volume, in words (`volume <id> of disk <id>`, or a path).
        `but`: volumes of the same image that may; before a commit of top into base, base may have top alone."""
        args = {"domain": domain, "image": image, "volumes": list(volumes), "but": list(but)}
        return dict(self._ask(SLOW, "referrers", args, deadline)["by"])

    # -- volumes --

    def create_volume(  # noqa: PLR0917 - a volume has as many facts as it has
        self,
        domain: Domain,
        image: str,
        volume: str,
        parent: str | None,
        capacity: int,
        format: str = "cow",
        description: str = "",
        *,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """VolumeFacts of the volume, made now or before; `capacity` in bytes."""
        wanted = {"volume": volume, "parent": parent, "capacity": capacity, "format": format}
        args = {"domain": domain, "image": image, **wanted, "description": description}
        return self._ask(MAKE, "create_volume", args, deadline)

    def volumes(self, domain: Domain, image: str, *, deadline: float | None = None) -> dict[str, Any]:
        """StorageView, and two keys beyond it: `trouble` (the Problem on the wire why there is no leaf, or null)
        and in each volume `backing` (the backing file string in its header, or null). NotFound: no such image."""
        return self._ask(QUICK, "volumes", {"domain": domain, "image": image}, deadline)

    def prepare_mark(
        self,
        domain: Domain,
        image: str,
        volume: str,
        legality: str,
        heir: str | None = None,
        *,
        deadline: float | None = None,
    ) -> None:
        """Write and sync the `.meta.new` of a later `mark`, before the guest is paused: the mark is then a rename
        that needs no space."""
        args = {"domain": domain, "image": image, "volume": volume, "legality": legality, "heir": heir}
        self._ask(QUICK, "prepare_mark", args, deadline)

    def mark(
        self,
        domain: Domain,
        image: str,
        volume: str,
        legality: str,
        heir: str | None = None,
        *,
        deadline: float | None = None,
    ) -> None:
        """Set LEGALITY ("legal", "illegal", "fake") durably; it is on the storage when this returns. `heir`: the base
        that a range went into of which this is the top."""
        args = {"domain": domain, "image": image, "volume": volume, "legality": legality, "heir": heir}
        self._ask(QUICK, "mark", args, deadline)

    def record_merge(
        self,
        domain: Domain,
        image: str,
        base: str,
        top: str,
        child: str | None,
        *,
        between: Sequence[str] = (),
        concluded: bool = False,
        deadline: float | None = None,
    ) -> None:
        """After top, with the volumes between, went down into base: these illegal, child's parent := base, sizes and
        types as they are now. ChainDiffers unless the child's header resolves to base (child None: unless base is the
        leaf). `concluded`: a living QEMU says so too; else JobFailed for an internal merge, unless it was begun."""
        ends = {"base": base, "top": top, "child": child, "between": list(between), "concluded": concluded}
        self._ask(MAKE, "record_merge", {"domain": domain, "image": image, **ends}, deadline)

    def put_back(self, domain: Domain, image: str, *, deadline: float | None = None) -> dict[str, str]:
        """Headers that a merge changed and nobody recorded name their old top again: {volume: top}."""
        return dict(self._ask(MAKE, "put_back", {"domain": domain, "image": image}, deadline)["back"])

    def record_chain(
        self,
        domain: Domain,
        image: str,
        chain: list[str],
        unused: list[str],
        live: bool,
        *,
        deadline: float | None = None,
    ) -> None:
        """Make the records follow the headers along `chain` (leaf first) and mark the `unused` volumes illegal."""
        args = {"domain": domain, "image": image, "ids": chain, "unused": unused, "live": live}
        self._ask(QUICK, "record_chain", args, deadline)

    def resize(self, domain: Domain, image: str, volume: str, capacity: int, *, deadline: float | None = None) -> None:
        """Record a new capacity in bytes (CAP of the `.meta`); the file itself is QEMU's to grow."""
        args = {"domain": domain, "image": image, "volume": volume, "capacity": capacity}
        self._ask(QUICK, "resize", args, deadline)

    def discard(
        self,
        domain: Domain,
        image: str,
        volume: str,
        below: Sequence[str] = (),
        *,
        stands_on: str | None = None,
        deadline: float | None = None,
    ) -> None:
        """Delete a volume that is marked illegal and that nothing on the domain refers to, nor any QEMU opens, and
        after it those `below` in this order, which only the ones before them may refer to. `stands_on`: what a living
        QEMU writes to; then also an empty leaf on top of it, to which none ever switched."""
        volumes = {"volume": volume, "below": list(below), "stands_on": stands_on}
        self._ask(SLOW, "discard", {"domain": domain, "image": image, **volumes}, deadline)

    def delete_image(self, domain: Domain, image: str, *, deadline: float | None = None) -> None:
        """Delete a disk with all its volumes, if nothing outside refers to them and no QEMU has them open."""
        self._ask(SLOW, "delete_image", {"domain": domain, "image": image}, deadline)

    # -- pure --

    @staticmethod
    def path(domain: Domain, image: str, volume: str) -> str:
        """Where the volume's file is; no I/O."""
        return layout.volume_path(domain["path"], domain["id"], image, volume)

    @staticmethod
    def leaf_of(view: dict[str, Any]) -> str:
        """The leaf of a `volumes` answer; raises its trouble if it has none."""
        if view["leaf"] is None:
            raise errors.from_wire(view["trouble"])
        return str(view["leaf"])

    # -- children --

    def close(self) -> None:
        """End every child; a call that is under way fails."""
        with self._lock:
            children = [*self._children.values(), *self._gone]
            self._children.clear()
            self._gone.clear()
        for child in children:
            child.end()

    def _ask(self, lane: str, op: str, args: dict[str, Any], deadline: float | None) -> dict[str, Any]:
        seconds = self._deadline if deadline is None else deadline
        limit = time.monotonic() + seconds
        path = str(args["domain"]["path"])
        for last in (False, True):
            child = self._child(path, lane)
            try:
                return child.ask(op, args, limit)
            except _Died as died:
                self._drop(path, lane, child)
                if last:
                    raise errors.StorageFailed(action=op, path=path, reason=f"its process died ({died})") from None
            except _Overdue as overdue:
                if overdue.hung:
                    self._drop(path, lane, child)
                raise errors.StorageTimeout(path=path, seconds=seconds) from None
        raise AssertionError("not reached")

    def _child(self, path: str, lane: str) -> _Child:
        with self._lock:
            child = self._children.pop((path, lane), None)
            if child is None:
                self._trim()
                child = _Child(self._environment)
            self._children[(path, lane)] = child  # now the most recently used
            return child

    def _trim(self) -> None:
        """End idle children beyond the limit; look after abandoned ones. Under the lock."""
        self._gone = [child for child in self._gone if not child.reaped()]
        for key, child in list(self._children.items()):
            if len(self._children) < MAX_CHILDREN:
                return
            if child.idle():
                del self._children[key]
                child.end()
                self._gone.append(child)

    def _drop(self, path: str, lane: str, child: _Child) -> None:
        child.kill()
        with self._lock:
            if self._children.get((path, lane)) is child:
                del self._children[(path, lane)]
            if not child.reaped():
                self._gone.append(child)


class _Died(Exception):
    """The child ended without an answer."""


class _Overdue(Exception):
    """The deadline passed; `hung`: our own request is in the child (else it was another thread's turn)."""

    def __init__(self, hung: bool) -> None:
        self.hung = hung


class _Child:
    """One storage_child process and the pipe to it; one request at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._turn = threading.Lock()
        self._number = 0
        self._rest = b""
        self._ended = False
        path = os.pathsep.join(p for p in (_ROOT, os.environ.get("PYTHONPATH", "")) if p)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.hostagent.storage_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": path},
            start_new_session=True,  # so that a qemu-img it runs is killed with it
        )
        self._input = cast(IO[bytes], self._process.stdin)
        self._output = cast(IO[bytes], self._process.stdout)

    def ask(self, op: str, args: dict[str, Any], limit: float) -> dict[str, Any]:
        if not self._turn.acquire(timeout=max(0.0, limit - time.monotonic())):
            raise _Overdue(hung=False)
        try:
            if self._ended:
                raise _Died("it was ended")
            self._number += 1
            self._send({"id": self._number, "op": op, "args": args})
            reply = self._receive(limit)
        finally:
            self._turn.release()
            if self._ended:
                self._close()
        if "error" in reply:
            raise errors.from_wire(reply["error"])
        return dict(reply["ok"] or {})

    def _send(self, request: dict[str, Any]) -> None:
        # A request is under 64 KiB and the child reads nothing else: the pipe takes it without blocking.
        try:
            self._input.write(json.dumps(request).encode() + b"\n")
            self._input.flush()
        except (OSError, ValueError) as error:
            raise _Died(str(error)) from None

    def _receive(self, limit: float) -> dict[str, Any]:
        """The answer to the last request."""
        while True:
            line = self._line(limit)
            try:
                reply = json.loads(line)
            except ValueError:
                raise _Died("it wrote something that is no answer") from None
            if isinstance(reply, dict) and reply.get("id") == self._number:
                return reply

    def _line(self, limit: float) -> bytes:
        pipe = self._output.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        parts, size = [self._rest], len(self._rest)
        while b"\n" not in parts[-1]:
            left = limit - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise _Overdue(hung=True)
            part = os.read(pipe, 1 << 20)
            size += len(part)
            if not part or size > MAX_REPLY:
                raise _Died(f"exit status {self._process.poll()}" if not part else "its answer is too long")
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def idle(self) -> bool:
        return not self._turn.locked()

    def kill(self) -> None:
        """SIGKILL to the child and what it started; returns at once even if it cannot die yet."""
        self._ended = True
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        self._close()

    def end(self) -> None:
        """Let an idle child go: it ends at the end of its input. A busy or hung one is killed."""
        self._ended = True
        self._close()
        if self.idle():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        self.kill()

    def reaped(self) -> bool:
        return self._process.poll() is not None

    def _close(self) -> None:
        """Close the pipes, unless a thread reads from them: a closed descriptor's number is soon another file's.
        That thread closes them when it is done."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            for pipe in (self._input, self._output):
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()
        finally:
            self._turn.release()
