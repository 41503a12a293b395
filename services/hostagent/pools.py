"""Bounded pools of native threads: a call that hangs costs its pool one thread and its caller the deadline."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overdue
from typing import Any, TypeVar

T = TypeVar("T")


class TooSlow(Exception):
    """The call did not end in time. `begun` false: it never started and never will (nothing was done)."""

    def __init__(self, what: str, seconds: float, begun: bool) -> None:
        self.what, self.seconds, self.begun = what, seconds, begun
        super().__init__(f"{what} did not end within {seconds:g} s")


class Pool:
    """`run` waits for a call in a thread of this pool, at most so many seconds."""

    def __init__(self, name: str, size: int) -> None:
        self._threads = ThreadPoolExecutor(size, thread_name_prefix=name)

    def start(self, what: str, call: Callable[..., T], *args: Any) -> Future[T]:
        return self._threads.submit(_run, what, call, args)

    def run(self, what: str, seconds: float, call: Callable[..., T], *args: Any) -> T:
        """Raises TooSlow, or whatever the call raises."""
        return result(self.start(what, call, *args), what, seconds)


def result(future: Future[T], what: str, seconds: float) -> T:
    try:
        return future.result(seconds)
    except Overdue:
        if future.done():  # the call itself raised a TimeoutError, or ended at this very moment
            return future.result()
        raise TooSlow(what, seconds, begun=not future.cancel()) from None


def _run(what: str, call: Callable[..., T], args: tuple[Any, ...]) -> T:
    hang_for_test(what)
    return call(*args)


_hung = threading.Event()


def hang_for_test(what: str) -> None:
    """DRYSTONE_TEST_HANG="blockJobAbort:60" makes the first native call of that name hang for 60 s."""
    wish = os.environ.get("DRYSTONE_TEST_HANG")
    if not wish or _hung.is_set():
        return
    name, _, seconds = wish.partition(":")
    if name == what:
        _hung.set()
        sys.stderr.write(f"{what} hangs for a test\n")
        time.sleep(float(seconds))
