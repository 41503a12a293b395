"""One storage child and the pipe to it: a request at a time, each with its deadline. Plain threads."""

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
from pathlib import Path
from typing import IO, Any, cast

from contracts import errors

MAX_REPLY = 256 * 2**20  # bytes of one answer: a scan of 100,000 volumes takes about 50 MiB
_ROOT = str(Path(__file__).resolve().parents[2])


class Died(Exception):
    """The child ended without an answer."""


class Overdue(Exception):
    """The deadline passed; `hung`: our own request is in the child (else it was another thread's turn)."""

    def __init__(self, hung: bool) -> None:
        self.hung = hung


class Child:
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
            raise Overdue(hung=False)
        try:
            if self._ended:
                raise Died("it was ended")
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
            raise Died(str(error)) from None

    def _receive(self, limit: float) -> dict[str, Any]:
        """The answer to the last request."""
        while True:
            line = self._line(limit)
            try:
                reply = json.loads(line)
            except ValueError:
                raise Died("it wrote something that is no answer") from None
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
                raise Overdue(hung=True)
            part = os.read(pipe, 1 << 20)
            size += len(part)
            if not part or size > MAX_REPLY:
                raise Died(f"exit status {self._process.poll()}" if not part else "its answer is too long")
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
