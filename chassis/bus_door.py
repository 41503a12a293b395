"""The answering side: what a service's door inherits, and what becomes of a request or news in it (bus_nameko calls).

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

from chassis import bus_news as news_rules
from chassis import bus_wire as wire
from chassis import context, inbox, logs
from chassis.bus_nameko import Ask, FrameProvider, Hear
from contracts import errors
from contracts.promise import Event, Rpc

if TYPE_CHECKING:
    from chassis.frame import Frame
    from chassis.settings import FrameSettings

_log = logs.get("bus")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Service:
    """What a service's door inherits. nameko makes one object per message: keep nothing on `self`."""

    name: ClassVar[str]
    parallel: ClassVar[int] = 32  # requests that one instance works on at the same time
    retry_delays: ClassVar[tuple[float, ...]] = (1.0, 5.0, 30.0, 120.0)  # seconds before each new try of an event
    frame: Frame = cast("Frame", FrameProvider())

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
