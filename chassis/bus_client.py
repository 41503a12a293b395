"""The asking side: calls with a deadline, direct news, and live subscriptions."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import amqp

from chassis import bus_green as green
from chassis import bus_lines as lines
from chassis import bus_wire as wire
from chassis import context, logs
from contracts import errors
from contracts.promise import Event, Rpc

CONNECT_PATIENCE = 1.0  # seconds that a call waits for a connection that is being made
HEARTBEAT = 20  # seconds; the broker notices a dead process, and we a dead broker, after about two of them
SETUP_SECONDS = 15.0  # for declaring and binding after a connection was made
BEAT = 5.0  # seconds between two looks at the heartbeat
BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts to connect
_log = logs.get("bus")


class Meter(Protocol):
    """What the client counts; `chassis.health.Health` is one."""

    def called(self, service: str, method: str, outcome: str, seconds: float) -> None: ...


@dataclass(frozen=True)
class Note:
    """What comes with a piece of news: its id, when it was told (epoch seconds), its key and who caused it."""

    id: str
    time: float
    key: str | None
    call: context.Call


class Ear:
    """One connection that listens, in a green thread of its own, and comes back after every loss.

    `declare(channel)` makes the queue and answers its name; `hear(message)` gets each message. Messages are
    acknowledged by the broker when it sends them: who listens here can afford to lose one.
    """

    def __init__(self, uri: str, declare: Callable[[Any], str], hear: Callable[[Any], None]) -> None:
        self._uri, self._declare, self._hear = uri, declare, hear
        self._thread: Any = None
        self._stopping = False
        self.ready = green.Signal()
        self.fault = ""
        self.connections = 0

    def start(self) -> None:
        if self._thread is None:
            self._thread = green.spawn(self._run)

    def stop(self) -> None:
        self._stopping = True
        if self._thread is not None:
            self._thread.kill()

    def _run(self) -> None:
        losses = 0
        while not self._stopping:
            before = self.connections
            try:
                self._listen()
            except Exception as fault:
                self.fault = lines.away(self._uri, fault).reason
            self.ready.clear()
            losses = 0 if self.connections > before else losses + 1
            green.sleep(BACKOFF[min(losses, len(BACKOFF) - 1)])

    def _listen(self) -> None:
        connection = lines.connect(self._uri, heartbeat=HEARTBEAT)
        try:
            with green.limit(SETUP_SECONDS):
                lines.ensure_exchange(connection, wire.RPC_EXCHANGE)
                channel = connection.channel()
                queue = self._declare(channel)
                channel.basic_consume(queue, no_ack=True, callback=self._hear)
            self.connections += 1
            self.fault = ""
            self.ready.set()
            while not self._stopping:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=BEAT)
                connection.heartbeat_tick()
        finally:
            with contextlib.suppress(*lines.FAULTS):
                connection.transport.close()
                connection.collect()


class Answers:
    """The replies to this process's calls: one durable queue that a short absence of the broker does not empty."""

    def __init__(self, uri: str, name: str) -> None:
        self._name = name
        self._boxes: dict[str, green.Box] = {}
        self.id = uuid.uuid4().hex
        self._ear = Ear(uri, self._declare, self._hear)

    def expect(self, correlation_id: str, patience: float) -> green.Box:
        """A box for one answer. Raises BusAway when nothing listens to the broker within so many seconds."""
        self._ear.start()
        if not self._ear.ready.wait(min(patience, CONNECT_PATIENCE)):
            raise errors.BusAway(reason=self._ear.fault or "still connecting")
        box = self._boxes[correlation_id] = green.Box()
        return box

    @property
    def fault(self) -> str:
        """Why no answers can arrive now; "" when they can, or nobody has asked yet."""
        return self._ear.fault

    def forget(self, correlation_id: str) -> None:
        self._boxes.pop(correlation_id, None)

    def stop(self) -> None:
        self._ear.stop()

    def _declare(self, channel: Any) -> str:
        queue = wire.reply_queue(self._name, self.id)
        arguments = {"x-expires": wire.REPLY_QUEUE_EXPIRES_MS}
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
        channel.queue_bind(queue, wire.RPC_EXCHANGE, wire.reply_key(self.id))
        return queue

    def _hear(self, message: Any) -> None:
        box = self._boxes.pop(message.properties.get("correlation_id"), None)
        if box is not None:
            box.put(message.body)


class Client:
    """Calls promises of other services and tells news. One per process; safe for any number of green threads."""

    def __init__(self, uri: str, name: str, meter: Meter | None = None) -> None:
        self._name, self._meter = name, meter
        self._uri = uri
        self.post = lines.Post(uri)
        self._answers = Answers(uri, name)
        self._ears: list[Ear] = []

    def call(
        self, promise: Rpc, request: dict[str, Any], *, at: str | None = None, deadline: float | None = None
    ) -> dict[str, Any]:
        """Ask and wait. `deadline` in seconds, the promise's own by default, never later than our caller's.

        Raises the promise's declared errors, and: NoAnswer (the outcome is unknown), ServiceAway, BusAway and Late
        (nothing was done).
        """
        started = time.monotonic()
        outcome = "ok"
        try:
            return self._ask(promise, request, at, deadline)
        except errors.Problem as problem:
            outcome = problem.code
            raise
        finally:
            if self._meter is not None:
                self._meter.called(promise.service, promise.method, outcome, time.monotonic() - started)

    def tell(self, event: Event, payload: dict[str, Any], key: str | None = None, timeout: float = 5.0) -> str:
        """Publish at once, with a confirm and the connection's user; answers the message id.

        For who has no outbox (an agent): best effort within `timeout` seconds. Raises BusAway, BadRequest.
        """
        event.load(payload)
        letter = lines.Letter(
            exchange=wire.events_exchange(event.service),
            key=wire.event_key(event, key),
            body=payload,
            headers=wire.to_headers(_undated(context.current())),
            signed=True,
        )
        try:
            self.post.send(letter, timeout)
        except (lines.Away, lines.Unconfirmed) as fault:
            raise errors.BusAway(reason=str(fault)) from None
        return letter.id

    def subscribe(
        self,
        events: Iterable[Event],
        handler: Callable[[Event, dict[str, Any], Note], None],
        gap: Callable[[], None] | None = None,
    ) -> Ear:
        """Hear these events live, from now on, in a queue of one's own that vanishes with the connection.

        `gap` is called after every later reconnection: news told meanwhile were missed.
        """
        subscription = _Subscription(list(events), handler, gap)
        ear = Ear(self._uri, subscription.declare, subscription.hear)
        self._ears.append(ear)
        ear.start()
        return ear

    def fault(self) -> str:
        """Why calls fail now; "" when nothing is known against them."""
        return self._answers.fault or self.post.fault or ""

    def close(self) -> None:
        self._answers.stop()
        for ear in self._ears:
            ear.stop()
        self.post.close()

    def _ask(self, promise: Rpc, request: dict[str, Any], at: str | None, deadline: float | None) -> dict[str, Any]:
        target = wire.address(promise.service, at)
        ends = _ends(promise, deadline)
        if ends <= time.time():
            raise errors.Late(service=target, method=promise.method, seconds=round(time.time() - ends, 3))
        correlation_id = uuid.uuid4().hex
        asked = time.time()
        box = self._answers.expect(correlation_id, ends - asked)
        try:
            self._send(promise, target, request, correlation_id, ends)
            body = box.get(ends - time.time())
        finally:
            self._answers.forget(correlation_id)
        if body is None:
            raise errors.NoAnswer(service=target, method=promise.method, seconds=round(ends - asked, 1))
        return opened(promise, body)

    def _send(self, promise: Rpc, target: str, request: dict[str, Any], correlation_id: str, ends: float) -> None:
        call = context.current()
        left = max(ends - time.time(), 0.001)
        headers = wire.to_headers(context.Call(call.request_id, call.flow_id, call.user, ends))
        letter = lines.Letter(
            exchange=wire.RPC_EXCHANGE,
            key=f"{target}.{promise.wire}",
            body={"args": [request], "kwargs": {}},
            headers=headers,
            mandatory=True,
            lasting=False,
            ttl=left,
            reply_to=wire.reply_key(self._answers.id),
            correlation_id=correlation_id,
        )
        try:
            self.post.send(letter, left)
        except lines.Unroutable:
            raise errors.ServiceAway(service=target) from None
        except lines.Away as fault:
            raise errors.BusAway(reason=fault.reason) from None
        except lines.Unconfirmed:
            return  # it may have arrived all the same: the answer or the deadline will tell


class _Subscription:
    def __init__(
        self,
        events: list[Event],
        handler: Callable[[Event, dict[str, Any], Note], None],
        gap: Callable[[], None] | None,
    ) -> None:
        self._events, self._handler, self._gap = events, handler, gap
        self._seen = False

    def declare(self, channel: Any) -> str:
        for exchange in {wire.events_exchange(event.service) for event in self._events}:
            lines.ensure_exchange(channel.connection, exchange)
        queue = str(channel.queue_declare("", exclusive=True, auto_delete=True).queue)
        for event in self._events:
            for key in (event.wire, f"{event.wire}.*"):
                channel.queue_bind(queue, wire.events_exchange(event.service), key)
        if self._seen and self._gap is not None:
            self._gap()
        self._seen = True
        return queue

    def hear(self, message: Any) -> None:
        exchange, key = message.delivery_info["exchange"], message.delivery_info["routing_key"]
        for event in self._events:
            if wire.events_exchange(event.service) == exchange and f"{key}.".startswith(f"{event.wire}."):
                green.spawn(self._deliver, event, message, wire.key_of(event, key))

    def _deliver(self, event: Event, message: Any, key: str | None) -> None:
        try:
            news = event.load(json.loads(message.body))
        except (ValueError, errors.BadRequest):
            return  # its own consumers park it, with a log line; a live view just does not show it
        call = wire.from_headers(message.headers, key)
        told = message.properties.get("timestamp")
        seconds = told.timestamp() if hasattr(told, "timestamp") else float(told or time.time())
        with context.use(call):
            self._handler(event, news, Note(message.properties.get("message_id", ""), seconds, key, call))


def _ends(promise: Rpc, deadline: float | None) -> float:
    ends = time.time() + (promise.deadline if deadline is None else deadline)
    callers = context.current().deadline
    return ends if callers is None else min(ends, callers)


def _undated(call: context.Call) -> context.Call:
    """News have no deadline."""
    return context.Call(call.request_id, call.flow_id, call.user)


def opened(promise: Rpc, body: str | bytes) -> dict[str, Any]:
    """What a reply holds. Raises the error that it carries; one the promise does not know arrives as InternalError."""
    try:
        envelope = json.loads(body).get("result") or {}
        error = envelope.get("error")
    except (ValueError, AttributeError):
        envelope, error = {}, {"code": "internal_error", "fields": {"correlation_id": f"{promise.service}-garbled"}}
    if error is None and isinstance(envelope.get("ok"), dict):
        return _loaded(promise, envelope["ok"])
    problem = errors.from_wire(error or {"code": "internal_error", "fields": {"correlation_id": "nothing"}})
    if promise.allows(problem):
        raise problem
    raise errors.InternalError(correlation_id=f"{promise.service}-{problem.code}")


def _loaded(promise: Rpc, reply: Any) -> dict[str, Any]:
    try:
        return promise.load_reply(reply)
    except errors.BadRequest as problem:  # theirs, not our caller's
        _log.error("a reply breaks its promise", method=promise.wire, faults=problem.fields["errors"])
        raise errors.InternalError(correlation_id=f"{promise.service}-broken-reply") from None


def check(uri: str) -> None:
    """Raises BusAway when the broker refuses us or does not answer; `refused` tells which in `.fields`."""
    try:
        lines.connect(uri).close()
    except lines.Away as fault:
        raise errors.BusAway(reason=fault.reason, refused=fault.refused) from None
    except amqp.AMQPError as fault:
        raise errors.BusAway(reason=str(fault), refused=False) from None
