"""One connection for all requests and news that come in, on nameko's QueueConsumer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import kombu
from nameko import messaging
from nameko.extensions import ProviderCollector

from chassis import bus_green as green
from chassis import bus_lines as lines
from chassis import logs

FRAME = "drystone.frame"  # where the container's configuration keeps it
HEARTBEAT = 20  # seconds
SETUP_SECONDS = 20.0  # for connecting, declaring and binding everything
BEAT = 2.0  # seconds between two looks at heartbeat and stop; also the longest an idle process takes to stop
BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts to connect
NOT_YET = "not connected yet"
_log = logs.get("bus")


class Bounded(kombu.Consumer):
    """A consumer with its own limit of unacknowledged messages (nameko sets one for all of a channel)."""

    limit = 1

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
        with self._setup, self.consumer_context() as (connection, _channel, _consumers):
            while not self.should_stop:
                self.on_iteration()
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=BEAT)
                connection.heartbeat_check()
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
