"""The answering side, on nameko's containers and entrypoints: requests and news come in here.

Delivery is at least once in both directions. A request can run twice when the broker or a connection dies between
its start and its acknowledgement, which is why every ask is idempotent under the id that its caller chose.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from nameko import messaging, rpc
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import DependencyProvider

from chassis import bus_green as green  # first: it patches
from chassis import bus_lines as lines
from chassis import bus_news as news_rules
from chassis import bus_wire as wire
from chassis import context, inbox, logs
from chassis.bus_intake import FRAME, Intake
from contracts import errors
from contracts.promise import Event, Rpc

if TYPE_CHECKING:
    from chassis.frame import Frame
    from chassis.settings import FrameSettings

REPLY_PATIENCE = 30.0  # seconds that a reply waits for the broker at most
_log = logs.get("bus")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _FrameProvider(DependencyProvider):
    def get_dependency(self, _worker: Any) -> Any:
        return self.container.config[FRAME]


class Service:
    """What a service's door inherits. nameko makes one object per message: keep nothing on `self`."""

    name: ClassVar[str]
    parallel: ClassVar[int] = 32  # requests that one instance works on at the same time
    retry_delays: ClassVar[tuple[float, ...]] = (1.0, 5.0, 30.0, 120.0)  # seconds before each new try of an event
    frame: Frame = cast("Frame", _FrameProvider())

    @classmethod
    def address(cls, settings: FrameSettings) -> str:
        """The name on the bus; services that run on every host append the host's id."""
        return cls.name

    @classmethod
    def prepare(cls, frame: Frame) -> None:
        """Called once, after the database is ready and before the first message: fill `frame.own`."""

    @classmethod
    def flows(cls, frame: Frame) -> tuple[Any, ...]:
        """The kinds of durable flows of this service (chassis.steps.FlowKind)."""
        return ()

    @classmethod
    def started(cls, frame: Frame) -> None:
        """Called once messages are taken: start background threads with bus.spawn."""

    @classmethod
    def stopping(cls, frame: Frame) -> None:
        """Called before the process ends in good order."""

    def _serve(self, desk: Ask, request: Any, message: Any) -> dict[str, Any]:
        started = time.monotonic()
        with context.use(wire.from_headers(message.headers)):
            envelope = answered(desk.promise, desk.container.service_name, partial(self._run, desk, request))
        outcome = envelope.get("error", {}).get("code", "ok")
        self.frame.health.served(desk.promise.method, outcome, time.monotonic() - started)
        return envelope

    def _run(self, desk: Ask, request: Any) -> Any:
        refuse_late(desk.promise, desk.container.service_name)
        return getattr(self, desk.handler)(desk.promise.load_request(request))

    def _hear(self, ear: Hear, news: dict[str, Any], arrival: news_rules.Arrival) -> Exception | None:
        """The handler's failure, or None. It is returned, not raised: nameko would log it at every try."""
        with context.use(arrival.call):
            try:
                self._digest(getattr(self, ear.handler), news, arrival.id)
            except Exception as fault:
                if arrival.tries == 0 and not isinstance(fault, errors.Problem):
                    _log.exception("an event handler failed", event_name=ear.event.wire, message_id=arrival.id)
                return fault
        return None

    def _digest(self, handler: Callable[..., Any], news: dict[str, Any], message_id: str) -> None:
        if self.frame.database is None:
            handler(news, None)
            return
        with self.frame.database.write() as session:
            inbox.once(session, message_id, lambda: handler(news, session))


def refuse_late(promise: Rpc, service: str) -> None:
    """Nothing stale ever runs: raises Late after the deadline, BadRequest when the request has none."""
    left = context.remaining()
    if left is None:
        raise errors.BadRequest(errors={wire.DEADLINE: ["Missing header: a request without a deadline is refused."]})
    if left <= 0:
        raise errors.Late(service=service, method=promise.method, seconds=round(-left, 3))


def answered(promise: Rpc, service: str, run: Callable[[], Any]) -> dict[str, Any]:
    """The envelope of a reply. What the promise does not declare is logged here and leaves as InternalError."""
    try:
        return {"ok": _checked(promise, run())}
    except errors.Problem as problem:
        if promise.allows(problem) and _travels(problem):
            return {"error": problem.to_wire()}
        return {"error": _unexpected(promise, service).to_wire()}
    except Exception:
        return {"error": _unexpected(promise, service).to_wire()}


def _checked(promise: Rpc, reply: Any) -> dict[str, Any]:
    """What breaks the promise or cannot travel must fail here, where it can be told. It is not the caller's fault."""
    try:
        loaded = promise.load_reply(reply)
    except errors.BadRequest as problem:
        raise ValueError(f"the reply breaks its promise: {problem.fields['errors']}") from None
    json.dumps(loaded)
    return loaded


def _travels(problem: errors.Problem) -> bool:
    try:
        json.dumps(problem.to_wire())
    except (TypeError, ValueError):
        return False
    return True


def _unexpected(promise: Rpc, service: str) -> errors.InternalError:
    correlation_id = f"{service}-{uuid.uuid4().hex[:12]}"
    _log.exception("a request ended in an undeclared error", method=promise.wire, correlation_id=correlation_id)
    return errors.InternalError(correlation_id=correlation_id)


class Desk(rpc.RpcConsumer):
    """The one queue of requests of a service; replies leave through the client's lines."""

    queue_consumer = Intake()
    queue: str | None

    def setup(self) -> None:
        if self.queue is None:
            self.queue = wire.rpc_queue(self.container.service_name)
            self.queue_consumer.register_provider(self)

    @property
    def limit(self) -> int:
        return int(self.container.service_cls.parallel)

    def declare(self, channel: Any) -> str:
        lines.ensure_exchange(channel.connection, wire.RPC_EXCHANGE)
        arguments = {"x-expires": wire.RPC_QUEUE_EXPIRES_MS}
        channel.queue_declare(self.queue, durable=True, auto_delete=False, arguments=arguments)
        channel.queue_bind(self.queue, wire.RPC_EXCHANGE, f"{self.container.service_name}.*")
        return str(self.queue)

    def get_provider_for_method(self, routing_key: str) -> Any:
        for provider in self._providers:
            if routing_key == f"{self.container.service_name}.{provider.promise.wire}":
                return provider
        raise errors.BadRequest(errors={"method": [f"{routing_key} is not served here (another version?)."]})

    def handle_message(self, body: Any, message: Any) -> None:
        try:
            provider = self.get_provider_for_method(message.delivery_info["routing_key"])
            provider.handle_message(body, message)
        except errors.Problem as problem:
            self.handle_result(message, {"error": problem.to_wire()}, None)

    def handle_result(self, message: Any, result: Any, exc_info: Any) -> tuple[Any, Any]:
        reply_to = message.properties.get("reply_to")
        if reply_to:
            self._reply(message, reply_to, result)
        self.queue_consumer.ack_message(message)
        return result, exc_info

    def _reply(self, message: Any, reply_to: str, envelope: Any) -> None:
        deadline = wire.from_headers(message.headers).deadline or time.time()
        left = min(max(deadline - time.time(), 1.0), REPLY_PATIENCE)
        letter = lines.Letter(
            exchange=wire.RPC_EXCHANGE,
            key=reply_to,
            body={"result": envelope, "error": None},
            correlation_id=message.properties.get("correlation_id"),
            lasting=False,
        )
        try:
            self.container.config[FRAME].client.post.send(letter, left, patient=left)
        except (lines.Away, lines.Unconfirmed) as fault:
            # The caller learns nothing, which is what it must be ready for; ending the process helps nobody.
            _log.warning("a reply was lost: the broker is away", reason=str(fault))


class Ask(rpc.Rpc):
    """One served promise."""

    rpc_consumer = Desk()

    def __init__(self, promise: Rpc, **kwargs: Any) -> None:
        self.promise = promise
        self.handler = ""
        super().__init__(**kwargs)

    def bind(self, container: Any, method_name: str) -> Any:
        bound = super().bind(container, "_serve")
        bound.handler = method_name
        return bound

    def handle_message(self, body: Any, message: Any) -> None:
        args = body.get("args") if isinstance(body, dict) else None
        if not isinstance(args, list) or len(args) != 1 or body.get("kwargs"):
            raise errors.BadRequest(errors={"args": ["A request is one positional argument."]})
        finish = partial(self.handle_result, message)
        try:
            self.container.spawn_worker(self, (self, args[0], message), {}, handle_result=finish)
        except ContainerBeingKilled:
            self.rpc_consumer.requeue_message(message)


class Hear(messaging.Consumer):
    """One event that a service listens to, in a durable queue that all its instances share."""

    queue_consumer = Intake()

    def __init__(self, event: Event, parallel: int = 1, key: str | None = None, **kwargs: Any) -> None:
        self.event, self.limit, self.key_field = event, parallel, key
        self.handler = ""
        super().__init__(queue=None, **kwargs)

    def bind(self, container: Any, method_name: str) -> Any:
        bound = super().bind(container, "_hear")
        bound.handler = method_name
        return bound

    def setup(self) -> None:
        self.queue = wire.event_queue(self.event, self.container.service_name)
        self.queue_consumer.register_provider(self)

    def declare(self, channel: Any) -> str:
        delays = self.container.service_cls.retry_delays
        news_rules.declare_retries(channel, self.container.service_name, delays)
        news_rules.declare_event(channel, self.event, self.container.service_name, only_keyed=bool(self.key_field))
        return str(self.queue)

    def handle_message(self, body: Any, message: Any) -> None:
        frame = self.container.config[FRAME]
        arrival = news_rules.Arrival(self.event, self.container.service_name, message)
        fault = arrival.fault(strict=frame.settings.strict_agents, key_field=self.key_field)
        if fault:
            self._park(arrival, fault)
            return
        finish = partial(self._finish, arrival)
        args = (self, self.event.load(body), arrival)
        try:
            self.container.spawn_worker(self, args, {}, handle_result=finish)
        except ContainerBeingKilled:
            self.queue_consumer.requeue_message(message)

    def _finish(self, arrival: news_rules.Arrival, _worker: Any, result: Any, exc_info: Any) -> tuple[Any, Any]:
        fault = result if exc_info is None else exc_info[1]
        if fault is None:
            self.container.config[FRAME].health.heard(self.event.wire, "ok")
            self.queue_consumer.ack_message(arrival.message)
            return None, None
        delays = self.container.service_cls.retry_delays
        why = f"{type(fault).__name__}: {fault}"
        if arrival.tries >= len(delays):
            self._park(arrival, f"failed {arrival.tries + 1} times, at last with {why}")
        else:
            _log.warning("an event will be tried again", event_name=self.event.wire, tries=arrival.tries + 1, why=why)
            self._move(arrival, arrival.again(delays[arrival.tries], why), "again")
        return None, None

    def _park(self, arrival: news_rules.Arrival, why: str) -> None:
        name = self.event.wire
        _log.error("an event was parked: a person must look at it", event_name=name, why=why, message_id=arrival.id)
        self._move(arrival, arrival.parked(why), "parked")

    def _move(self, arrival: news_rules.Arrival, letter: lines.Letter, outcome: str) -> None:
        """Put the copy in its new place first, then let go of the original."""
        frame = self.container.config[FRAME]
        try:
            frame.client.post.send(letter, 10.0, patient=5.0)
        except (lines.Away, lines.Unconfirmed):
            green.sleep(1.0)  # so that a failing handler and a failing broker do not spin
            self.queue_consumer.requeue_message(arrival.message)
            return
        frame.health.heard(self.event.wire, outcome)
        self.queue_consumer.ack_message(arrival.message)


def serves(promise: Rpc) -> Decorator:
    """Answer this promise with a method `(self, request: dict) -> dict`."""
    return cast("Decorator", Ask.decorator(promise))


def hears(event: Event, parallel: int = 1, key: str | None = None) -> Decorator:
    """Handle this event with a method `(self, news: dict, session)`.

    `session` is an open write transaction that holds the inbox's row too (None without a database): an event is
    handled once in effect, and the handler makes no call inside. `parallel` handlers run at the same time per
    instance (1 keeps the order). `key` names the field that must equal the key the event was told with, such as
    "host_id" for the news of agents.
    """
    return cast("Decorator", Hear.decorator(event, parallel=parallel, key=key))
