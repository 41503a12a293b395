"""nameko, and all that is made of it: what comes in over one connection is taken by its containers and entrypoints.

`Intake` is the connection, `Desk` the queue of requests, `Ask` one served promise, `Hear` one event that is listened
to. nameko's own RPC client and publisher are not used: they know no deadline and no outbox.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import kombu
from nameko import messaging, rpc
from nameko.containers import ServiceContainer
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import DependencyProvider, ProviderCollector

from chassis import bus_green as green  # first: it patches
from chassis import bus_lines as lines
from chassis import bus_news as news_rules
from chassis import bus_wire as wire
from chassis import logs
from contracts import errors
from contracts.promise import Event, Rpc

FRAME = "drystone.frame"  # where the container's configuration keeps it
HEARTBEAT = 20  # seconds
SETUP_SECONDS = 20.0  # for connecting, declaring and binding everything
BEAT = 2.0  # seconds between two looks at heartbeat and stop; also the longest an idle process takes to stop
ROUND_SECONDS = 30.0  # of one look: a connection that takes longer is given up, whatever it is that hangs
BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts to connect
NOT_YET = "not connected yet"
REPLY_PATIENCE = 30.0  # seconds that a reply waits for the broker at most
_log = logs.get("bus")


class FrameProvider(DependencyProvider):
    """Gives each worker its service's frame."""

    def get_dependency(self, _worker: Any) -> Any:
        return self.container.config[FRAME]


class Bounded(kombu.Consumer):
    """A consumer with its own limit of unacknowledged messages (nameko sets one for all of a channel). It ends with its
    connection and takes no leave: the answer to that could be waited for without end."""

    limit = 1

    def __exit__(self, *_: object) -> None:
        return

    def consume(self, no_ack: bool | None = None) -> None:
        self.qos(prefetch_count=self.limit)
        super().consume(no_ack)


class Intake(messaging.QueueConsumer):
    """One connection for all that comes in. It comes back after any loss and never ends the process."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = NOT_YET
        self._connections = 0
        self._setup: Any = None

    def setup(self) -> None:
        self.container.config[FRAME].health.check("bus", lambda: self.fault)

    @property
    def connection(self) -> Any:
        return kombu.Connection(self.amqp_uri, connect_timeout=lines.CONNECT_SECONDS, heartbeat=HEARTBEAT)

    def run(self) -> None:
        with contextlib.suppress(messaging.QueueConsumerStopped):
            self._run()
        if not self._consumers_ready.ready():  # stopped before the first connection was made; nameko waits for it
            self._consumers_ready.send_exception(messaging.QueueConsumerStopped())

    def _run(self) -> None:
        losses = 0
        while not self.should_stop:
            before = self._connections
            try:
                for _ in self.consume(limit=None):
                    pass
            except Exception as fault:
                self._lost(lines.away(self.amqp_uri, fault).reason)
            losses = 0 if self._connections > before else losses + 1
            if not self.should_stop:
                green.sleep(BACKOFF[min(losses, len(BACKOFF) - 1)])

    def consume(self, limit: Any = None, timeout: Any = None, safety_interval: Any = 1, **_: Any) -> Iterator[None]:
        self._setup = green.Limit(SETUP_SECONDS)  # kombu tries again, and for ever, after an OSError
        with self._setup, self.consumer_context() as (_, channel, _consumers):
            # kombu's own object makes a new connection, without consumers, when a worker finds this one broken first
            own = channel.connection
            while not self.should_stop:
                self.on_iteration()
                with green.Limit(ROUND_SECONDS):
                    with contextlib.suppress(TimeoutError):
                        own.drain_events(timeout=BEAT)
                    if not own.connected:
                        raise ConnectionResetError(errno.ECONNRESET, "a worker found it broken")
                    own.heartbeat_tick()
                yield

    @contextlib.contextmanager
    def establish_connection(self) -> Iterator[Any]:
        connection = self.create_connection()
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            yield connection
        finally:
            connection.collect()  # without a farewell, which could wait for ever for its answer

    def get_consumers(self, _consumer_cls: Any, channel: Any) -> Any:
        for provider in self._providers:
            consumer = Bounded(
                channel,
                queues=[kombu.Queue(provider.declare(channel))],
                callbacks=[partial(self.handle_message, provider)],
                auto_declare=False,
                accept=["json"],
                on_decode_error=self.on_decode_error,
            )
            consumer.limit = provider.limit
            self._consumers[provider] = consumer
        return self._consumers.values()

    def on_consume_ready(self, connection: Any, channel: Any, consumers: Any, **kwargs: Any) -> None:
        self._setup.cancel()
        self._connections += 1
        if self._connections > 1:
            _log.info("connected to the broker again")
        self.fault = ""
        super().on_consume_ready(connection, channel, consumers, **kwargs)

    def on_decode_error(self, message: Any, fault: Any) -> None:
        """Not JSON: news are parked by the broker, a request is dropped."""
        _log.warning("a message that is not JSON was refused", key=message.delivery_info.get("routing_key"))
        message.reject()

    def handle_message(self, provider: Any, body: Any, message: Any) -> None:
        self.container.spawn_managed_thread(partial(self._handle, provider, body, message), identifier="message")

    def ack_message(self, message: Any) -> None:
        self._settle(message.channel, message.ack)

    def requeue_message(self, message: Any) -> None:
        self._settle(message.channel, message.requeue)

    def unregister_provider(self, provider: Any) -> None:
        if self.fault:  # nothing listens now, so there is nothing to cancel
            ProviderCollector.unregister_provider(self, provider)
            self.should_stop = not self._providers
            return
        super().unregister_provider(provider)

    def _handle(self, provider: Any, body: Any, message: Any) -> None:
        try:
            provider.handle_message(body, message)
        except Exception:  # nameko would end the process
            _log.exception("a message could not be taken", key=message.delivery_info.get("routing_key"))
            self.requeue_message(message)

    def _settle(self, channel: Any, settle: Callable[[], None]) -> None:
        """A message of a lost connection is the broker's again already."""
        try:
            if channel.connection:
                settle()
        except Exception as fault:
            _log.debug("a message could not be acknowledged", reason=str(fault))

    def _lost(self, reason: str) -> None:
        if self.fault in ("", NOT_YET):  # once per absence
            _log.warning("the broker is away", reason=reason)
        self.fault = reason


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


def container(service: Any, address: str, amqp_uri: str, frame: Any) -> Any:
    """nameko's container of a service, with enough workers that waiting ones never keep others from starting."""
    named = type(service.__name__, (service,), {"name": address})
    ears = [entry.limit for entry in entries(named) if isinstance(entry, Hear)]
    workers = service.parallel + sum(ears) + 1
    return ServiceContainer(named, {"AMQP_URI": amqp_uri, "max_workers": workers, FRAME: frame})


def entries(service: Any) -> list[Ask | Hear]:
    """What of this class is served and heard."""
    members = [getattr(service, name) for name in dir(service)]
    return [entry for member in members for entry in getattr(member, "nameko_entrypoints", ())]
