"""How long bytes flow into a file, seen from outside: the same for whoever copies."""

from __future__ import annotations

import threading
import time
from pathlib import Path


class Flow:
    """Adds to `into` the seconds between the first and the last growth of a file, looked at every 5 ms."""

    def __init__(self, file: Path, into: list[float]) -> None:
        self._file, self._into = file, into
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="flow", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _watch(self) -> None:
        first = last = 0.0
        before = self._file.stat().st_blocks
        while not self._over.wait(0.005):
            blocks = self._file.stat().st_blocks
            if blocks != before:
                before, last = blocks, time.perf_counter()
                first = first or last
        self._into.append(last - first)
