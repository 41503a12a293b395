"""The bus: the one door to nameko, kombu and eventlet. Import it first: it patches the process.

    class Inventory(bus.Service):
        name = "inventory"

        @bus.serves(inventory.create_vm)
        def create_vm(self, request): ...

        @bus.hears(hostagent.vm_started, key="host_id")
        def vm_started(self, news, session): ...

Errors of `Client.call`: the promise's own, and NoAnswer (outcome unknown: look, never assume), ServiceAway, BusAway,
Late (nothing was done), BadRequest, InternalError. The files: bus_green (green threads), bus_wire (names on the
wire), bus_lines (publishing), bus_client (asking), bus_nameko (taking what comes in: nameko is imported there and
nowhere else), bus_door (answering), bus_news (events' fate), bus_parked (a person looks).
"""

from __future__ import annotations

import sys
from typing import Any

from chassis.bus_green import Box, Signal, after, gather, on_stop_signals, serve_http, sleep, spawn  # isort: skip  # patches

import eventlet

from chassis import bus_lines as lines
from chassis import bus_wire as wire
from chassis import logs
from chassis.bus_client import Client, Ear, Note, check
from chassis.bus_door import Service, hears, serves
from chassis.bus_nameko import Hear, container, entries
from chassis.frame import Frame
from contracts import errors

__all__ = [
    "Box",
    "Client",
    "Ear",
    "Note",
    "Service",
    "Signal",
    "after",
    "check",
    "gather",
    "hears",
    "outbox_sender",
    "run_service",
    "serve_http",
    "serves",
    "sleep",
    "spawn",
]

STOP_SECONDS = 10.0  # what runs may take so long to end after SIGTERM
CONFIRM_SECONDS = 20.0  # for one batch of the outbox
_log = logs.get("bus")


def run_service(service_cls: type[Service], frame: Frame) -> None:
    """Take messages until SIGTERM or SIGINT. Raises SystemExit when the broker refuses our user at the start."""
    refuse_bad_credentials(frame)
    taker = container(service_cls, service_cls.address(frame.settings), frame.settings.amqp_uri, frame)
    end = Box()
    on_stop_signals(lambda: end.put("asked"))
    _watch_parked(taker, frame)
    starting = eventlet.spawn(taker.start)  # it does not return before the broker is there
    starting.link(lambda thread: _started(service_cls, frame, thread, end))
    eventlet.spawn(taker.wait).link(lambda _thread: end.put("died"))
    why = end.get()
    service_cls.stopping(frame)
    with eventlet.Timeout(STOP_SECONDS, False):
        taker.stop()
    taker.kill()
    frame.client.close()
    if why != "asked":
        sys.exit(f"{service_cls.name} ended because of an error; its log tells which.")


def refuse_bad_credentials(frame: Frame) -> None:
    """End with one sentence if waiting cannot help; a broker that is merely away is waited for."""
    try:
        check(frame.settings.amqp_uri)
    except errors.BusAway as problem:
        if problem.fields["refused"]:
            sys.exit(f"{problem} {problem.advice}")
        _log.warning("the broker is away; waiting for it", reason=problem.fields["reason"])


def outbox_sender(client: Client) -> Any:
    """What `outbox.Publisher` sends with: a batch of its rows, in order, confirmed, or an exception."""

    def send(rows: list[Any]) -> None:
        letters = [
            lines.Letter(
                exchange=row.exchange,
                key=row.routing_key,
                body=row.body,
                headers=row.headers,
                id=row.message_id,
                signed=True,
            )
            for row in rows
        ]
        client.post.send(letters, CONFIRM_SECONDS)

    return send


def _started(service_cls: type[Service], frame: Frame, thread: Any, end: Box) -> None:
    try:
        thread.wait()
        service_cls.started(frame)
        _log.info("started", instance=frame.settings.instance)
    except Exception:
        _log.exception("could not start")
        end.put("died")


def _watch_parked(taker: Any, frame: Frame) -> None:
    taken = entries(taker.service_cls)
    if not taken:  # nothing comes in, so only what goes out can tell how the broker is
        frame.health.check("bus", frame.client.fault)
    if not any(isinstance(entry, Hear) for entry in taken):
        return
    queue = wire.parked_queue(taker.service_name)

    def parked() -> float | None:
        return frame.client.post.count(queue)

    def warning() -> str:
        count = parked()
        return f"{count} events are parked in the queue {queue}: a person must look at them" if count else ""

    frame.health.gauge("drystone_parked_events", "events that nobody could digest", parked)
    frame.health.warn("parked", warning)
