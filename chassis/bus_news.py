"""What becomes of an event on arrival: accepted, tried again later, or parked for a person."""

from __future__ import annotations

import json
import time
from typing import Any

from chassis import bus_lines as lines
from chassis import bus_wire as wire
from contracts import errors
from contracts.promise import Event

WHY_LIMIT = 500  # characters of a failure that travel in a header


def declare_retries(channel: Any, consumer: str, delays: tuple[float, ...]) -> None:
    """The waiting and the parking place of a service."""
    for name in (wire.wait_exchange(consumer), wire.again_exchange(consumer), wire.parked_queue(consumer)):
        lines.ensure_exchange(channel.connection, name)
    for delay in delays:
        queue = wire.wait_queue(consumer, delay)
        arguments = wire.wait_queue_arguments(consumer, delay)
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
        channel.queue_bind(queue, wire.wait_exchange(consumer), f"{_ms(delay)}.#")
    parked = wire.parked_queue(consumer)
    channel.queue_declare(parked, durable=True, auto_delete=False)
    channel.queue_bind(parked, parked, "#")


def declare_event(channel: Any, event: Event, consumer: str, *, only_keyed: bool) -> None:
    """The durable queue of one event for one consumer."""
    exchange = wire.events_exchange(event.service)
    lines.ensure_exchange(channel.connection, exchange)
    queue = wire.event_queue(event, consumer)
    arguments = wire.event_queue_arguments(consumer)
    channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    if not only_keyed:
        channel.queue_bind(queue, exchange, event.wire)
    channel.queue_bind(queue, exchange, f"{event.wire}.*")
    channel.queue_bind(queue, wire.again_exchange(consumer), f"*.{queue}")


class Arrival:
    """One delivery of an event."""

    def __init__(self, event: Event, consumer: str, message: Any) -> None:
        self.event, self.consumer, self.message = event, consumer, message
        self.headers: dict[str, Any] = dict(message.headers or {})
        self.id = str(message.properties.get("message_id") or "")
        self.retried = message.delivery_info["exchange"] == wire.again_exchange(consumer)
        self.routing_key = str(self.headers.get(wire.KEY) if self.retried else message.delivery_info["routing_key"])
        self.key = wire.key_of(event, self.routing_key)
        self.call = wire.from_headers({**self.headers, wire.DEADLINE: None}, self.key)
        # what came back through the waiting place carries our own user: the first one is kept in a header
        teller = self.headers.get(wire.TELLER) if self.retried else message.properties.get("user_id")
        self.teller = str(teller or "")
        tries = self.headers.get(wire.TRIES)
        self.tries = tries if self.retried and isinstance(tries, int) else 0

    def fault(self, *, strict: bool, key_field: str | None) -> str:
        """Why this event must not be handled; "" when it may."""
        if not self.id:
            return "it has no message id"
        try:
            news = self.event.load(json.loads(self.message.body))
        except (ValueError, errors.BadRequest) as problem:
            return str(problem)
        if key_field and str(news.get(key_field)) != self.key:
            return f"it speaks for {key_field} {news.get(key_field)} under the key {self.key}"
        return self._forged(strict)

    def _forged(self, strict: bool) -> str:
        """An instance speaks for itself only: the broker has validated `user_id`, so it must fit the key.

        Without `strict` a user that is none of the instances' (a demo has a single one) may tell anything.
        """
        user = self.teller
        owner = wire.address(self.event.service, self.key)
        an_instance = user.startswith(f"{self.event.service}-")
        if (an_instance or (strict and self.key)) and user != owner:
            return f"it was told by {user or 'nobody'} in the name of {owner}"
        return ""

    def again(self, delay: float, why: str) -> lines.Letter:
        """A copy that comes back after `delay` seconds."""
        headers = {**self._kept(), wire.TRIES: self.tries + 1, wire.WHY: _short(why)}
        key = f"{_ms(delay)}.{wire.event_queue(self.event, self.consumer)}"
        return self._copy(wire.wait_exchange(self.consumer), key, headers)

    def parked(self, why: str) -> lines.Letter:
        """A copy for the parked messages, under the name of the queue it belongs to."""
        headers = {**self._kept(), wire.WHY: _short(why), wire.PARKED: time.time()}
        return self._copy(wire.parked_queue(self.consumer), wire.event_queue(self.event, self.consumer), headers)

    def _kept(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.headers.items() if name.startswith("x-drystone-")}
        return {**kept, wire.KEY: self.routing_key, wire.TELLER: self.teller}

    def _copy(self, exchange: str, key: str, headers: dict[str, Any]) -> lines.Letter:
        body = self.message.body
        text = body.decode() if isinstance(body, bytes) else str(body)
        return lines.Letter(exchange=exchange, key=key, body=text, headers=headers, id=self.id)


def _short(why: str) -> str:
    return why[:WHY_LIMIT]


def _ms(delay: float) -> int:
    return round(delay * 1000)
