"""Between the bus door and the hypervisor process: JSON lines over a unix socket, asked by number, and news.

    -> {"id": 7, "method": "pivot", "request": {...}, "seconds": 55.0, "context": {...}}
    <- {"id": 7, "ok": {...}}   or   {"id": 7, "error": {"code", "fields"}}
    <- {"news": "job_changed", "payload": {...}}

The caller's side uses `socket` and `threading` as they are: in the door, where the chassis has patched them, its
threads are green; in tests they are plain ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contracts import errors

CONNECT_PATIENCE = 3.0  # seconds
MAX_LINE = 256 * 2**20  # a scan of 100,000 volumes takes about 50 MiB
_CHUNK = 1 << 18

Message = dict[str, Any]


class Caller:
    """Asks a hypervisor process. Any number of threads; connects when needed and again after a loss."""

    def __init__(self, path: Path, service: str, hear: Callable[[str, Message], None]) -> None:
        self._path, self._service, self._hear = path, service, hear
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._waiting: dict[int, _Box] = {}
        self._number = 0

    def call(self, method: str, request: Message, seconds: float, context: Message | None = None) -> Any:
        """Raises the Problem that came back, ServiceAway when it could not be asked, NoAnswer when no answer came
        (the outcome is unknown)."""
        box = _Box()
        number = self._send(method, request, seconds, context, box)
        try:
            if not box.ready.wait(seconds):
                raise errors.NoAnswer(service=self._service, method=method, seconds=round(seconds, 1))
        finally:
            self._waiting.pop(number, None)
        if box.reply is None:
            raise errors.NoAnswer(service=self._service, method=method, seconds=round(seconds, 1))
        if "error" in box.reply:
            raise errors.from_wire(box.reply["error"])
        return box.reply["ok"]

    def close(self) -> None:
        with self._lock:
            self._drop(self._socket)

    def _send(self, method: str, request: Message, seconds: float, context: Message | None, box: _Box) -> int:
        with self._lock:
            self._number += 1
            message = {"id": self._number, "method": method, "request": request, "seconds": seconds}
            self._waiting[self._number] = box
            try:
                connection = self._connected(min(CONNECT_PATIENCE, seconds / 2))
                connection.sendall(_line({**message, "context": context or {}}))
            except OSError as fault:
                self._waiting.pop(self._number, None)
                self._drop(self._socket)
                # a line that was cut off is never run, so nothing was asked
                raise errors.ServiceAway(service=f"The hypervisor process of {self._service}") from fault
            return self._number

    def _connected(self, patience: float) -> socket.socket:
        """A process that is just being started is waited for."""
        limit = time.monotonic() + patience
        while self._socket is None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.connect(str(self._path))
            except OSError:
                made.close()
                if time.monotonic() > limit:
                    raise
                time.sleep(0.1)
                continue
            self._socket = made
            threading.Thread(target=self._read, args=(made,), daemon=True).start()
        return self._socket

    def _read(self, connection: socket.socket) -> None:
        try:
            for message in lines(connection):
                if "news" in message:
                    self._hear(message["news"], message["payload"])
                elif (box := self._waiting.pop(message["id"], None)) is not None:
                    box.put(message)
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._drop(connection)

    def _drop(self, connection: socket.socket | None) -> None:
        """Under the lock. Who waits learns nothing."""
        if connection is None or connection is not self._socket:
            return
        self._socket = None
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
        waiting, self._waiting = self._waiting, {}
        for box in waiting.values():
            box.put(None)


class _Box:
    def __init__(self) -> None:
        self.ready = threading.Event()
        self.reply: Message | None = None

    def put(self, reply: Message | None) -> None:
        self.reply = reply
        self.ready.set()


class Server:
    """The hypervisor's side. `serve(message, answer)` must return at once and call `answer(reply)` from anywhere."""

    def __init__(self, path: Path, serve: Callable[[Message, Callable[[Message], None]], None]) -> None:
        self._path, self._serve = path, serve
        self._lock = threading.Lock()
        self._clients: list[_Client] = []

    def listen(self) -> socket.socket:
        """Bind now, so that a caller who comes early is queued; `run` takes the connections."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)  # the agent's user only
        try:
            made.bind(str(self._path))
        finally:
            os.umask(mask)
        made.listen(16)
        return made

    def run(self, listening: socket.socket) -> None:
        """Until the process ends."""
        while True:
            connection, _ = listening.accept()
            client = _Client(connection)
            with self._lock:
                self._clients.append(client)
            threading.Thread(target=self._read, args=(client,), daemon=True).start()

    def tell(self, name: str, payload: Message) -> None:
        """News to every caller that is connected; who is not hears nothing and looks later."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            client.send({"news": name, "payload": payload})

    def _read(self, client: _Client) -> None:
        try:
            for message in lines(client.connection):
                message["arrived"] = time.monotonic()
                self._serve(message, client.send)
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._clients.remove(client)
            client.connection.close()


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        with self._lock, contextlib.suppress(OSError):  # it went away: it asks again
            self.connection.sendall(_line(message))


def lines(connection: socket.socket) -> Any:
    """Every message until the other side closes. ValueError for what is no message."""
    parts: list[bytes] = []
    size = 0
    while chunk := connection.recv(_CHUNK):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            parts.append(line)
            yield json.loads(b"".join(parts))
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > MAX_LINE:
            raise ValueError("a line is too long")


def _line(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
