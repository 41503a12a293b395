"""A place on the real broker for a test: it calls services, collects news and plays providers.

Plain kombu in plain threads: the pytest process is not patched. Whatever a schema refuses is refused here too, so a
fake provider cannot drift from the promise.

    bus.answer(hostagent.list_vms, lambda request: {"vms": []}, at=host_id)
    heard = bus.expect(snapshots.merge_finished)
    bus.call(snapshots.start_merge, {...})
    heard.wait(1)
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import kombu
from kombu.exceptions import ChannelError

from chassis import bus_wire as wire
from chassis import context
from contracts import errors
from contracts.promise import Event, Rpc

Answer = Callable[[dict[str, Any]], dict[str, Any]]
CONNECT = 20.0  # seconds for one connection to the broker
FAULTS = (OSError, AttributeError, RuntimeError, *kombu.Connection().connection_errors)
"""What a broken connection raises: py-amqp adds AttributeError and RuntimeError when it dies under one's hands."""
QUIET = 0.2  # seconds a listening thread waits before it looks whether to stop


class _Thread:
    """Consumes one queue until stopped; connects again when the broker was away."""

    def __init__(self, uri: str, declare: Callable[[Any], str], handle: Callable[[Any], None]) -> None:
        self._uri, self._declare, self._handle = uri, declare, handle
        self._stopping = threading.Event()
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self.ready.wait(60):
            raise RuntimeError("the fake could not listen to the broker")

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except (*FAULTS, ChannelError):
                time.sleep(QUIET)

    def _listen(self) -> None:
        with kombu.Connection(self._uri, connect_timeout=CONNECT) as connection:
            channel = connection.transport.establish_connection().channel()
            try:
                queue = self._declare(channel)
                channel.basic_consume(queue, no_ack=True, callback=self._handle)
                self.ready.set()
                while not self._stopping.is_set():
                    try:
                        channel.connection.drain_events(timeout=QUIET)
                    except TimeoutError:
                        continue
            finally:
                channel.connection.transport.close()


class Heard:
    """The news that arrived since `Bus.expect`, validated; each is a dict of the payload."""

    def __init__(self) -> None:
        self.news: list[dict[str, Any]] = []
        self.calls: list[context.Call] = []
        self.ids: list[str] = []
        self._changed = threading.Condition()

    def add(self, news: dict[str, Any], call: context.Call, message_id: str) -> None:
        with self._changed:
            self.news.append(news)
            self.calls.append(call)
            self.ids.append(message_id)
            self._changed.notify_all()

    def wait(self, count: int = 1, timeout: float = 60.0) -> list[dict[str, Any]]:
        """At least so many news. Raises AssertionError when they do not come in time (seconds)."""
        return self.until(lambda news: len(news) >= count, timeout)

    def until(self, enough: Callable[[list[dict[str, Any]]], bool], timeout: float = 60.0) -> list[dict[str, Any]]:
        with self._changed:
            came = self._changed.wait_for(lambda: enough(self.news), timeout)
            assert came, f"{len(self.news)} news came in {timeout} s, the last: {self.news[-1:]}"
            return list(self.news)


class Voice:
    """Publishes over one connection, opened at its first use and again after a fault; for any number of threads."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._connection: Any = None

    def tell(self, event: Event, payload: Callable[[], dict[str, Any]], key: str | None = None) -> None:
        """Publish news that are made, and stamped with their time, when all is ready to send them."""

        def checked() -> dict[str, Any]:
            news = payload()
            event.load(news)
            return news

        exchange = wire.events_exchange(event.service)
        self.publish(exchange, wire.event_key(event, key), checked, message_id=uuid.uuid4().hex)

    def publish(self, exchange: str, key: str, body: Callable[[], Any], **properties: Any) -> None:
        topic = kombu.Exchange(exchange, type="topic", durable=True)
        with self._lock:
            try:
                producer = self._producer(topic)
                producer.publish(body(), exchange=topic, routing_key=key, **properties)
            except BaseException:
                self._hang_up()
                raise

    def close(self) -> None:
        with self._lock:
            self._hang_up()

    def _producer(self, topic: kombu.Exchange) -> Any:
        if self._connection is None:
            options = {"confirm_publish": True}
            self._connection = kombu.Connection(self._uri, connect_timeout=CONNECT, transport_options=options)
        topic(self._connection.default_channel).declare()
        return self._connection.Producer(serializer="json")

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None


class Bus:
    """Use as a context manager; everything it listens to ends with it."""

    def __init__(self, uri: str, user: str = "tester") -> None:
        self.uri = uri
        self._user = user
        self._id = uuid.uuid4().hex
        self._threads: list[_Thread] = []
        self._boxes: dict[str, tuple[threading.Event, list[Any]]] = {}
        self._replies: _Thread | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.stop()

    def call(
        self,
        promise: Rpc,
        request: dict[str, Any],
        at: str | None = None,
        *,
        deadline: float | None = None,
        call: context.Call | None = None,
    ) -> dict[str, Any]:
        """Ask a service as another one would; the same errors. `deadline` in seconds."""
        seconds = promise.deadline if deadline is None else deadline
        headers = wire.to_headers(call or context.new(self._user))
        headers[wire.DEADLINE] = time.time() + seconds
        body = {"args": [request], "kwargs": {}}
        return _opened(promise, self.ask(promise, body, at, headers=headers, seconds=seconds, expiration=seconds))

    def ask(
        self, promise: Rpc, body: Any, at: str | None = None, *, headers: Any, seconds: float = 10.0, **properties: Any
    ) -> dict[str, Any]:
        """Send any body with any headers as a request; answers the envelope. For tests of bad callers."""
        self._listen_for_replies()
        target = wire.address(promise.service, at)
        correlation_id = uuid.uuid4().hex
        came, bodies = self._boxes[correlation_id] = (threading.Event(), [])
        # delivery_mode 1: a request does not survive a restart of the broker, as with the real client
        properties.update(
            reply_to=wire.reply_key(self._id), correlation_id=correlation_id, mandatory=True, delivery_mode=1
        )
        try:
            self.publish(wire.RPC_EXCHANGE, wire.rpc_key(promise, at), body, headers=headers, **properties)
        except ChannelError as fault:
            if "NO_ROUTE" in str(fault):
                raise errors.ServiceAway(service=target) from None
            raise
        if not came.wait(seconds + 0.5):
            raise errors.NoAnswer(service=target, method=promise.method, seconds=seconds)
        envelope: dict[str, Any] = json.loads(bodies[0])["result"]
        return envelope

    def wait_for(self, promise: Rpc, at: str | None = None, timeout: float = 60.0) -> None:
        """Until the provider of this promise listens (seconds)."""
        ends = time.monotonic() + timeout
        queue = wire.rpc_queue(wire.address(promise.service, at))
        while not self._consumers(queue):
            assert time.monotonic() < ends, f"nobody serves {queue} after {timeout} s"
            time.sleep(0.1)

    def expect(self, event: Event, key: str | None = None) -> Heard:
        """Collect this event from now on (one key only, or all)."""
        heard = Heard()

        def declare(channel: Any) -> str:
            exchange = wire.events_exchange(event.service)
            channel.exchange_declare(exchange, "topic", durable=True, auto_delete=False)
            queue = str(channel.queue_declare("", exclusive=True, auto_delete=True).queue)
            for routing_key in [wire.event_key(event, key)] if key else [event.wire, f"{event.wire}.*"]:
                channel.queue_bind(queue, exchange, routing_key)
            return queue

        def handle(message: Any) -> None:
            routing_key = message.delivery_info["routing_key"]
            call = wire.from_headers(message.headers, wire.key_of(event, routing_key))
            heard.add(event.load(json.loads(message.body)), call, message.properties.get("message_id", ""))

        self._threads.append(_Thread(self.uri, declare, handle))
        return heard

    def answer(self, promise: Rpc, fn: Answer, at: str | None = None) -> list[dict[str, Any]]:
        """Play the provider of one promise. Answers the (growing) list of requests that came in.

        What `fn` raises as a Problem must be declared; what it returns must fit the reply's schema: both are
        checked, and a breach reaches the caller as InternalError and the test as a failed `asked` entry.
        """
        asked: list[dict[str, Any]] = []

        def declare(channel: Any) -> str:
            channel.exchange_declare(wire.RPC_EXCHANGE, "topic", durable=True, auto_delete=False)
            queue = f"fake-{wire.rpc_key(promise, at)}-{self._id}"
            channel.queue_declare(queue, exclusive=True, auto_delete=True)
            channel.queue_bind(queue, wire.RPC_EXCHANGE, wire.rpc_key(promise, at))
            return queue

        def handle(message: Any) -> None:
            worker = threading.Thread(target=self._answer, args=(promise, fn, asked, message), daemon=True)
            worker.start()

        self._threads.append(_Thread(self.uri, declare, handle))
        return asked

    def tell(self, event: Event, payload: dict[str, Any], key: str | None = None, **properties: Any) -> str:
        """Publish news as their owner would; answers the message id. The payload is checked."""
        event.load(payload)
        return self.tell_anything(event, payload, key, **properties)

    def voice(self) -> Voice:
        """For who tells news often; close it."""
        return Voice(self.uri)

    def tell_anything(self, event: Event, payload: Any, key: str | None = None, **properties: Any) -> str:
        """The same without a check, for tests of bad news."""
        message_id = str(properties.pop("message_id", None) or uuid.uuid4().hex)
        exchange = wire.events_exchange(event.service)
        self.publish(exchange, wire.event_key(event, key), payload, message_id=message_id, **properties)
        return message_id

    def publish(self, exchange: str, key: str, body: Any, **properties: Any) -> None:
        """Anything, confirmed by the broker."""
        with contextlib.closing(Voice(self.uri)) as voice:
            voice.publish(exchange, key, lambda: body, **properties)

    def _answer(self, promise: Rpc, fn: Answer, asked: list[dict[str, Any]], message: Any) -> None:
        envelope = _answered(promise, fn, asked, json.loads(message.body), message.headers)
        self.publish(
            wire.RPC_EXCHANGE,
            message.properties["reply_to"],
            {"result": envelope, "error": None},
            correlation_id=message.properties.get("correlation_id"),
        )

    def _listen_for_replies(self) -> None:
        with self._lock:
            if self._replies is None:
                self._replies = _Thread(self.uri, self._declare_replies, self._take_reply)
                self._threads.append(self._replies)

    def _declare_replies(self, channel: Any) -> str:
        queue = wire.reply_queue("test", self._id)
        channel.exchange_declare(wire.RPC_EXCHANGE, "topic", durable=True, auto_delete=False)
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-expires": 60_000})
        channel.queue_bind(queue, wire.RPC_EXCHANGE, wire.reply_key(self._id))
        return queue

    def _take_reply(self, message: Any) -> None:
        box = self._boxes.pop(message.properties.get("correlation_id"), None)
        if box is not None:
            box[1].append(message.body)
            box[0].set()

    def _consumers(self, queue: str) -> int:
        with kombu.Connection(self.uri, connect_timeout=CONNECT) as connection:
            try:
                return int(connection.default_channel.queue_declare(queue, passive=True).consumer_count)
            except ChannelError:
                return 0


def _answered(promise: Rpc, fn: Answer, asked: list[Any], body: Any, headers: Any) -> dict[str, Any]:
    try:
        deadline = wire.from_headers(headers).deadline
        assert deadline is not None, "a request without a deadline"
        if deadline < time.time():
            raise errors.Late(service=promise.service, method=promise.method, seconds=0)
        request = promise.load_request(body["args"][0])
        asked.append(request)
        return {"ok": _checked(promise, fn(request))}
    except errors.Problem as problem:
        if promise.allows(problem):
            return {"error": problem.to_wire()}
        return {"error": errors.InternalError(correlation_id=f"fake: {problem!r} is not declared").to_wire()}
    except Exception as fault:
        return {"error": errors.InternalError(correlation_id=f"fake: {fault!r}").to_wire()}


def _checked(promise: Rpc, reply: dict[str, Any]) -> dict[str, Any]:
    try:
        return promise.load_reply(reply)
    except errors.BadRequest as problem:
        raise AssertionError(f"the fake's reply breaks {promise.wire}: {problem}") from None


def _opened(promise: Rpc, envelope: dict[str, Any]) -> dict[str, Any]:
    if "ok" in envelope:
        return promise.load_reply(envelope["ok"])
    problem = errors.from_wire(envelope["error"])
    assert promise.allows(problem), f"{promise.wire} does not declare {problem!r}"
    raise problem
