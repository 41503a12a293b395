"""Parked news, for the person who looks at them.

    python -m chassis.bus_parked list snapshots        what is parked, and why
    python -m chassis.bus_parked return snapshots      back to their handlers, after the cause was mended
    python -m chassis.bus_parked drop snapshots ID     forget one message for good

The broker is the one of DRYSTONE_AMQP_URI or DRYSTONE_CONFIG. Nothing is lost when this is interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import amqp
import kombu

from chassis import bus_wire as wire
from chassis import settings

Verdict = Callable[["Parked"], str]  # "keep", "return" or "drop"


@dataclass(frozen=True)
class Parked:
    """One parked message. `queue` is where it belongs, `why` what was wrong the last time."""

    message: Any
    id: str
    queue: str
    routing_key: str
    why: str
    since: float | None

    def line(self) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since)) if self.since else "-"
        return f"{self.id or '-'}  {when}  {self.queue}  {self.why}"


def visit(uri: str, service: str, verdict: Verdict) -> list[Parked]:
    """Look at every parked message once and do with it what `verdict` says. Raises OSError or amqp.AMQPError."""
    with kombu.Connection(uri, connect_timeout=5) as connection:
        channel = connection.transport.establish_connection().channel()
        channel.confirm_select()
        seen: list[Parked] = []
        while (message := channel.basic_get(wire.parked_queue(service))) is not None:
            seen.append(_read(message))  # unacknowledged, so the next look gets the next one
        for parked in seen:
            _settle(channel, service, parked, verdict(parked))
        channel.connection.close()
        return seen


def _read(message: Any) -> Parked:
    headers = message.headers or {}
    deaths = headers.get("x-death") or [{}]
    queue = deaths[0].get("queue") or message.delivery_info["routing_key"]
    key = headers.get(wire.KEY) or (deaths[0].get("routing-keys") or [""])[0]
    why = str(headers.get(wire.WHY) or "not JSON")
    return Parked(message, message.properties.get("message_id", ""), queue, key, why, headers.get(wire.PARKED))


def _settle(channel: Any, service: str, parked: Parked, verdict: str) -> None:
    message = parked.message
    if verdict == "keep":
        channel.basic_reject(message.delivery_tag, requeue=True)
        return
    if verdict == "return":
        headers = {name: value for name, value in (message.headers or {}).items() if name.startswith("x-drystone-")}
        headers.update({wire.KEY: parked.routing_key, wire.TRIES: 0})
        copy = amqp.Message(
            message.body,
            application_headers=headers,
            delivery_mode=2,
            message_id=parked.id,
            content_type="application/json",
            content_encoding="utf-8",
        )
        channel.basic_publish_confirm(copy, wire.again_exchange(service), f"0.{parked.queue}", mandatory=True)
    channel.basic_ack(message.delivery_tag)


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[0] not in ("list", "return", "drop"):
        sys.exit(__doc__)
    verb, service, ids = arguments[0], arguments[1], arguments[2:]
    if verb == "drop" and not ids:
        sys.exit("Name the ids to drop; `list` shows them.")
    other = {"list": "keep"}.get(verb, verb)

    def verdict(parked: Parked) -> str:
        return other if not ids or parked.id in ids else "keep"

    uri = settings.load(settings.FrameSettings, os.environ).amqp_uri
    for parked in visit(uri, service, verdict):
        print(parked.line() if verb == "list" else f"{verdict(parked)}: {parked.line()}")  # noqa: T201  a command: this is its answer


if __name__ == "__main__":
    main(sys.argv[1:])
