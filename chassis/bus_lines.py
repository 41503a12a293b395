"""Outgoing messages: a few connections with publisher confirms, each used by one green thread at a time."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import amqp
import kombu
from eventlet import patcher

from chassis import bus_green as green
from chassis import settings as _settings

FAULTS: tuple[type[Exception], ...] = (amqp.AMQPError, OSError, EOFError, AttributeError, RuntimeError)
"""What a broken connection raises: py-amqp adds AttributeError and RuntimeError when it dies under one's hands."""

CONNECT_SECONDS = 3.0
IDLE_SECONDS = 120.0  # a line that was idle for longer is replaced: firewalls forget connections silently


_select: Any = patcher.original("select")  # eventlet takes poll() away; it is only used without waiting


class Away(Exception):
    """The broker cannot be reached. `refused` when it answered and said no: waiting will not help."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        self.reason, self.refused = reason, refused
        super().__init__(reason)


class Unconfirmed(Exception):
    """The connection broke before the broker confirmed: the messages may or may not be on their way."""


class Unroutable(Exception):
    """No queue takes the message."""


_LOST: tuple[type[Exception], ...] = (Unconfirmed, *FAULTS)


@dataclass(frozen=True)
class Letter:
    """One message. `ttl` in seconds; `lasting` ones survive a restart of the broker."""

    exchange: str
    key: str
    body: Any
    headers: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    mandatory: bool = False
    lasting: bool = True
    ttl: float | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    signed: bool = False  # carry the connection's user, which the broker validates

    def message(self, user: str) -> amqp.Message:
        properties: dict[str, Any] = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "application_headers": self.headers,
            "message_id": self.id,
            "delivery_mode": 2 if self.lasting else 1,
            "timestamp": int(time.time()),
        }
        if self.ttl is not None:
            properties["expiration"] = str(max(1, round(self.ttl * 1000)))
        for name in ("reply_to", "correlation_id"):
            if getattr(self, name):
                properties[name] = getattr(self, name)
        if self.signed:
            properties["user_id"] = user
        body = self.body if isinstance(self.body, str) else json.dumps(self.body, separators=(",", ":"))
        return amqp.Message(body, **properties)


def connect(uri: str, heartbeat: int = 0) -> Any:
    """An open amqp connection. Raises Away with a reason that a person understands."""
    wanted = kombu.Connection(uri, connect_timeout=CONNECT_SECONDS, heartbeat=heartbeat)
    try:
        return wanted.transport.establish_connection()
    except FAULTS as fault:
        raise away(uri, fault) from None


def away(uri: str, fault: Exception) -> Away:
    """The same fault in plain words; the address is shown without its password."""
    where = _settings.mask(uri)
    if isinstance(fault, Away):
        return fault
    if isinstance(fault, kombu.exceptions.OperationalError) and isinstance(fault.__cause__, Exception):
        fault = fault.__cause__  # kombu's wrapping hides what it was
    if isinstance(fault, amqp.AccessRefused):
        return Away(f"{where} refuses this user and password", refused=True)
    if isinstance(fault, amqp.NotAllowed):
        return Away(f"{where} refuses this user on this virtual host", refused=True)
    return Away(_network_reason(where, fault))


def _network_reason(where: str, fault: Exception) -> str:
    if isinstance(fault, ConnectionRefusedError):
        return f"nothing listens at {where}"
    if isinstance(fault, socket.gaierror):
        return f"the name in {where} does not resolve"
    if isinstance(fault, TimeoutError):
        return f"nothing answers at {where} in time"
    number = getattr(fault, "errno", None)
    return f"no connection to {where}: {os.strerror(number) if number else str(fault) or type(fault).__name__}"


def ensure_exchange(connection: Any, name: str) -> None:
    """Make a durable topic exchange unless it is there (looking needs no permission, declaring does)."""
    channel = connection.channel()
    try:
        channel.exchange_declare(name, "topic", passive=True)
    except amqp.NotFound:
        channel = connection.channel()
        channel.exchange_declare(name, "topic", durable=True, auto_delete=False)
    channel.close()


class Line:
    """One connection with one channel in confirm mode."""

    def __init__(self, uri: str) -> None:
        self.used = time.monotonic()
        self.connection = connect(uri)
        self._user = str(kombu.Connection(uri).userid or "guest")
        self._exchanges: set[str] = set()
        self._sent = 0
        self._waiting: dict[int, Letter] = {}
        self._nacked: list[Letter] = []
        self._returned: set[str] = set()
        self.wrote = False
        try:
            self.channel = self._channel()
        except BaseException:
            self.close()
            raise

    def _channel(self) -> Any:
        channel = self.connection.channel()
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        return channel

    def usable(self) -> bool:
        """False when it is old or the broker has hung up meanwhile."""
        if time.monotonic() - self.used > IDLE_SECONDS or not self.connection.connected:
            return False
        poll = _select.poll()
        poll.register(self.connection.sock.fileno(), _select.POLLIN)
        return not poll.poll(0)  # nothing is due on an idle line: whatever there is to read is its end

    def send(self, letters: Sequence[Letter], timeout: float) -> None:
        """Publish all, in order, and wait for the confirms. Raises Unroutable, Unconfirmed, or one of FAULTS."""
        self.wrote = False
        for letter in letters:
            self._prepare(letter.exchange)
        for letter in letters:
            self._sent += 1
            self._waiting[self._sent] = letter
            self.wrote = True
            message = letter.message(self._user)
            self.channel._basic_publish(message, letter.exchange, letter.key, mandatory=letter.mandatory)
        self._collect(timeout)
        self.used = time.monotonic()
        if self._nacked:
            raise Unconfirmed("the broker refused to take a message")
        if self._returned:
            self._returned.clear()
            raise Unroutable

    def count(self, queue: str) -> int:
        """Messages that wait in a queue. Raises amqp.NotFound (and is then of no more use)."""
        return int(self.channel.queue_declare(queue, passive=True).message_count)

    def close(self) -> None:
        try:
            self.connection.transport.close()  # a polite close waits for an answer that may never come
            self.connection.collect()
        except FAULTS:
            return

    def _prepare(self, exchange: str) -> None:
        if exchange and exchange not in self._exchanges:
            ensure_exchange(self.connection, exchange)
            self._exchanges.add(exchange)

    def _collect(self, timeout: float) -> None:
        ends = time.monotonic() + timeout
        while self._waiting:
            left = ends - time.monotonic()
            if left <= 0:
                raise Unconfirmed("no confirm in time")
            self.connection.drain_events(timeout=left)

    def _settle(self, tag: int, multiple: bool) -> list[Letter]:
        tags = [t for t in self._waiting if t <= tag] if multiple else [tag]
        return [self._waiting.pop(t) for t in tags if t in self._waiting]

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._nacked.extend(self._settle(tag, multiple))

    def _on_return(self, _fault: Any, _exchange: str, _key: str, message: Any) -> None:
        self._returned.add(message.properties.get("message_id", ""))


class Post:
    """Sends letters over a small pool of lines; survives restarts of the broker.

    When the broker is away a send fails at once, unless it is `patient` for so many seconds. Once something was
    written and not confirmed, it is written again over a new line while time is left: at least once, not once.
    """

    def __init__(self, uri: str, size: int = 4) -> None:
        self._uri = uri
        self._pool = green.Pool(self._line, size)
        self.fault: str | None = None

    def send(self, letters: Letter | Sequence[Letter], timeout: float, patient: float = 0.0) -> None:
        """Raises Unroutable, Away (nothing was sent) or Unconfirmed (unknown)."""
        batch = [letters] if isinstance(letters, Letter) else list(letters)
        started = time.monotonic()
        wrote, pause = False, 0.05
        while True:
            left = started + timeout - time.monotonic()
            try:
                return self._once(batch, left)
            except Unroutable:
                raise
            except _Broken as broken:
                wrote = wrote or broken.wrote
                since = time.monotonic() - started
                hopeless = broken.refused or since + pause >= timeout
                if hopeless or (broken.away and since >= max(patient, 1.0 if wrote else 0.0)):
                    raise self._verdict(wrote, broken) from None
            green.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _verdict(self, wrote: bool, broken: _Broken) -> Exception:
        return Unconfirmed(broken.reason) if wrote else Away(broken.reason, refused=broken.refused)

    def count(self, queue: str, timeout: float = 2.0) -> int | None:
        """Messages in a queue; None when that is not known now."""
        try:
            line = self._take(timeout)
        except _Broken:
            return None
        try:
            with green.limit(timeout):
                found = line.count(queue)
        except FAULTS as fault:
            self._drop(line)  # a look at a queue that is not there costs the channel
            return 0 if isinstance(fault, amqp.NotFound) else None
        self._pool.give(line)
        return found

    def close(self) -> None:
        for line in self._pool.drain():
            line.close()

    def _once(self, batch: Sequence[Letter], left: float) -> None:
        left = max(left, 0.1)
        line = self._take(left)
        try:
            with green.limit(left + 1.0):  # a frozen broker answers no declaration either
                line.send(batch, left)
        except Unroutable:
            self._pool.give(line)
            raise
        except _LOST as fault:
            self._drop(line)
            raise _Broken(str(away(self._uri, fault)), wrote=line.wrote) from None
        except BaseException:  # the green thread was killed: the line's state is unknown
            self._drop(line)
            raise
        self._pool.give(line)

    def _drop(self, line: Line) -> None:
        line.close()
        self._pool.give(None)

    def _take(self, timeout: float) -> Line:
        try:
            line = self._pool.take(timeout)
        except Away as gone:
            self._pool.give(None)
            self.fault = gone.reason
            raise _Broken(gone.reason, away=True, refused=gone.refused) from None
        if line is None:
            raise _Broken("all lines to it are busy")
        self.fault = None
        if line.usable():
            return cast(Line, line)
        self._drop(line)
        for old in self._pool.drain():  # they were as old as this one
            old.close()
        return self._take(timeout)

    def _line(self) -> Line:
        try:
            with green.limit(CONNECT_SECONDS):
                return Line(self._uri)
        except FAULTS as fault:
            raise away(self._uri, fault) from None


class _Broken(Exception):
    def __init__(self, reason: str, *, wrote: bool = False, away: bool = False, refused: bool = False) -> None:
        self.reason, self.wrote, self.away, self.refused = reason, wrote, away, refused
        super().__init__(reason)
