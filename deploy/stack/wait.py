"""Waiting with a deadline and a sentence that says for what."""

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NotInTime(Exception):
    """What was waited for did not come; the message names it."""


def until(what: str, look: Callable[[], T | None], seconds: float = 30.0, every: float = 0.05) -> T:
    """Look until the answer is true and return it; NotInTime(what) after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > end:
            raise NotInTime(f"waited {seconds:g} s for {what}")
        time.sleep(every)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
