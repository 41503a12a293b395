"""Green threads: the only place that patches the process and starts them.

Importing this module patches the standard library (sockets, threads, time). It must happen before anything else of
the process is imported, which is why `chassis.run` imports the bus first.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

# eventlet's own resolver costs 9 MB per process (measured) and ignores nsswitch; brokers and databases are named
# by address or resolved by a local cache, and while they are away there is little else to do anyway.
os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")

with warnings.catch_warnings(record=True):
    # It announces the end of its support (about April 2027). That is why it is kept inside these files. A filter
    # would not do: it puts its own in front.
    import eventlet
    import eventlet.event
    import eventlet.hubs
    import eventlet.wsgi

eventlet.monkey_patch()

from chassis import context  # noqa: E402  after the patch, like everything else

Thread = Any  # eventlet's GreenThread; it has no types


def spawn(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Thread:
    """Run in a green thread of its own. It starts with an empty call context: no deadline is inherited."""
    return eventlet.spawn(_guarded, fn, *args, **kwargs)


def _guarded(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return fn(*args, **kwargs)
    except Exception:
        # Nobody waits for this thread, so nobody else would tell.
        sys.stderr.write("A background thread ended with an error.\n")
        traceback.print_exc()
        return None


def gather(fn: Callable[[Any], Any], items: Iterable[Any], limit: int = 16) -> list[Any]:
    """`fn` of each, at most `limit` at the same time, in the name and with the deadline of the present call. The first
    error is raised once all of them have ended."""
    call = context.current()

    def one(item: Any) -> Any:
        with context.use(call):
            return fn(item)

    return list(eventlet.GreenPool(limit).imap(one, items))


def after(seconds: float, fn: Callable[..., Any], *args: Any) -> Thread:
    """Run in a green thread after so many seconds; `.cancel()` on the result prevents it."""
    return eventlet.spawn_after(seconds, _guarded, fn, *args)


def limit(seconds: float) -> Any:
    """A context that raises TimeoutError inside when it lasts longer; `.cancel()` on its value lifts it."""
    return eventlet.Timeout(seconds, TimeoutError(f"no answer within {seconds:g} s"))


class Limit:
    """As `limit`, around libraries that take a TimeoutError for a lost connection, swallow it and try again: what ends
    the inside is no Exception, and becomes a TimeoutError only outside. It runs from its making on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer = eventlet.Timeout(seconds)

    def cancel(self) -> None:
        self._timer.cancel()

    def __enter__(self) -> Limit:
        return self

    def __exit__(self, _kind: Any, raised: Any, _trace: Any) -> None:
        self._timer.cancel()
        if raised is self._timer:
            raise TimeoutError(f"no answer within {self._seconds:g} s") from None


def sleep(seconds: float = 0.0) -> None:
    eventlet.sleep(seconds)


class Signal:
    """A flag that green threads wait for. Setting it never switches threads."""

    def __init__(self) -> None:
        self._event = eventlet.event.Event()

    def set(self) -> None:
        if not self._event.ready():
            self._event.send(True)

    def clear(self) -> None:
        if self._event.ready():
            self._event = eventlet.event.Event()

    def is_set(self) -> bool:
        return bool(self._event.ready())

    def wait(self, timeout: float | None = None) -> bool:
        """True when it was set within so many seconds."""
        if timeout is not None and timeout <= 0:
            return self.is_set()
        return bool(self._event.wait(timeout))


class Box:
    """A place for one value that another green thread brings."""

    def __init__(self) -> None:
        self._event = eventlet.event.Event()

    def put(self, value: Any) -> None:
        if not self._event.ready():
            self._event.send(value)

    def get(self, timeout: float | None = None) -> Any:
        """The value, or None after so many seconds."""
        return self._event.wait(None if timeout is None else max(timeout, 0))


class Pool:
    """At most `size` things made by `make`, lent to one green thread at a time."""

    def __init__(self, make: Callable[[], Any], size: int) -> None:
        self._make = make
        self._free: list[Any] = []
        self._tickets = eventlet.semaphore.Semaphore(size)

    def take(self, timeout: float) -> Any:
        """One of them, or None when none came free within so many seconds."""
        if not self._tickets.acquire(timeout=max(timeout, 0.001)):
            return None
        return self._free.pop() if self._free else self._make()

    def give(self, thing: Any) -> None:
        """Back; None gives back the place only."""
        if thing is not None:
            self._free.append(thing)
        self._tickets.release()

    def drain(self) -> list[Any]:
        """All that are free now."""
        free, self._free = self._free, []
        return free


def serve_http(app: Callable[..., Any], port: int, host: str = "127.0.0.1") -> int:
    """Serve a WSGI application in green threads; answers the port (useful with 0). Raises OSError if it is taken."""
    sock = eventlet.listen((host, port))
    spawn(eventlet.wsgi.server, sock, app, log_output=False, socket_timeout=30, max_size=16)
    return int(sock.getsockname()[1])


def on_stop_signals(fn: Callable[[], None]) -> None:
    """Call `fn` in a green thread on SIGTERM or SIGINT.

    The hub sleeps in epoll and does not notice a plain signal handler's work until its next timer (PEP 475), so the
    signal is written to a pipe that wakes it.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def watch() -> None:
        while True:
            eventlet.hubs.trampoline(reader, read=True)
            if set(os.read(reader, 64)) & {signal.SIGTERM, signal.SIGINT}:
                fn()

    spawn(watch)
