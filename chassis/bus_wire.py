"""Names on the wire: exchanges, queues, keys and headers. Changing one of them breaks a running installation.

This module imports neither nameko nor eventlet, so that ordinary (not green) programs and tests can speak the wire.

| what                                     | name                                              |
|------------------------------------------|---------------------------------------------------|
| requests and replies                     | exchange `nameko-rpc` (topic)                     |
| requests for a service or an agent       | queue `rpc-<service>`, key `<service>.<method>_v1`|
| replies to a process                     | queue `rpc.reply-<service>-<id>`, key `reply.<id>`|
| news of a service                        | exchange `<service>.events`, key `<event>.v1[.<key>]` |
| news for a consumer                      | queue `evt.<source>.<event>.v1--<consumer>`       |
| news that wait for another try           | exchange `wait--<consumer>`, queues `wait--<consumer>--<ms>` |
| and come back                            | exchange `again--<consumer>`                      |
| news that nobody could digest            | exchange and queue `parked--<consumer>`           |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chassis import context
from contracts.promise import Event, Rpc

RPC_EXCHANGE = "nameko-rpc"

DEADLINE = "x-drystone-deadline"  # epoch seconds
REQUEST = "x-drystone-request"
FLOW = "x-drystone-flow"
USER = "x-drystone-user"
TRIES = "x-drystone-tries"  # how often a handler has failed on this event
TELLER = "x-drystone-teller"  # the validated user who told the event, kept likewise
WHY = "x-drystone-why"  # the last failure, one sentence
PARKED = "x-drystone-parked"  # when, in epoch seconds
KEY = "x-drystone-key"  # the event's own routing key, kept while it waits for another try

# An RPC queue outlives its service for this long, so that a restart is not an outage; after it a call to the
# service is unroutable and ends at once in ServiceAway instead of waiting for its deadline.
RPC_QUEUE_EXPIRES_MS = 60_000
REPLY_QUEUE_EXPIRES_MS = 120_000


def address(service: str, at: str | None = None) -> str:
    """The service's name on the bus; `at` is the id of one host for services that run on every host."""
    return f"{service}-{at}" if at else service


def rpc_queue(name: str) -> str:
    return f"rpc-{name}"


def rpc_key(promise: Rpc, at: str | None = None) -> str:
    return f"{address(promise.service, at)}.{promise.wire}"


def reply_queue(name: str, reply_id: str) -> str:
    return f"rpc.reply-{name}-{reply_id}"


def reply_key(reply_id: str) -> str:
    return f"reply.{reply_id}"


def events_exchange(service: str) -> str:
    return f"{service}.events"


def event_key(event: Event, key: str | None = None) -> str:
    return f"{event.wire}.{key}" if key else event.wire


def key_of(event: Event, routing_key: str) -> str | None:
    """The part after the event's name, or None."""
    return routing_key.removeprefix(event.wire).removeprefix(".") or None


def event_queue(event: Event, consumer: str) -> str:
    return f"evt.{event.service}.{event.wire}--{consumer}"


def wait_exchange(consumer: str) -> str:
    return f"wait--{consumer}"


def wait_queue(consumer: str, delay: float) -> str:
    return f"wait--{consumer}--{round(delay * 1000)}"


def again_exchange(consumer: str) -> str:
    return f"again--{consumer}"


def parked_queue(consumer: str) -> str:
    """The queue, and the exchange in front of it."""
    return f"parked--{consumer}"


def event_queue_arguments(consumer: str) -> dict[str, Any]:
    """A rejected event goes to the parked ones."""
    return {"x-dead-letter-exchange": parked_queue(consumer)}


def wait_queue_arguments(consumer: str, delay: float) -> dict[str, Any]:
    return {"x-message-ttl": round(delay * 1000), "x-dead-letter-exchange": again_exchange(consumer)}


def to_headers(call: context.Call) -> dict[str, Any]:
    """What travels with every request and event."""
    pairs = {REQUEST: call.request_id, FLOW: call.flow_id, USER: call.user, DEADLINE: call.deadline}
    return {name: value for name, value in pairs.items() if value}


def from_headers(headers: Mapping[str, Any] | None, key: str | None = None) -> context.Call:
    """The call that a message belongs to. Headers come from outside: a wrong type counts as absent."""
    headers = headers or {}
    flow = headers.get(FLOW)
    return context.Call(
        request_id=str(headers.get(REQUEST) or ""),
        flow_id=str(flow) if flow else None,
        user=str(headers.get(USER) or ""),
        deadline=_seconds(headers.get(DEADLINE)),
        key=key,
    )


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
