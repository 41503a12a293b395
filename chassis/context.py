"""Who asked, for what, and until when: carried from the HTTP request to the last RPC, event and log line."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """The work this green thread does at the moment.

    `deadline` is in epoch seconds (wall clock, because it travels between hosts). `key` is set while an event is
    handled: the last part of its routing key, such as the host id of the agent that told it.
    """

    request_id: str = ""
    flow_id: str | None = None
    user: str = ""
    deadline: float | None = None
    key: str | None = None


_current: contextvars.ContextVar[Call | None] = contextvars.ContextVar("drystone_call", default=None)
_NOBODY = Call()


def current() -> Call:
    """The call being worked on; an empty one outside of any."""
    return _current.get() or _NOBODY


@contextlib.contextmanager
def use(call: Call) -> Iterator[Call]:
    """Work on this call inside the block."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


def new(user: str = "", *, flow_id: str | None = None, deadline: float | None = None) -> Call:
    """A call that starts here, with a fresh request id."""
    return Call(request_id=uuid.uuid4().hex, flow_id=flow_id, user=user, deadline=deadline)


def within(flow_id: str) -> contextlib.AbstractContextManager[Call]:
    """Work for a flow: the same call with the flow's id, and without the deadline of whoever started it."""
    return use(dataclasses.replace(current(), flow_id=flow_id, deadline=None))


def remaining() -> float | None:
    """Seconds until the caller's deadline (negative when it has passed); None when there is none."""
    deadline = current().deadline
    return None if deadline is None else deadline - time.time()
