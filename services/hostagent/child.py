"""The door keeps its hypervisor process: starts it, watches it, starts it again. Green side."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from services.hostagent.place import Place

BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next start of one that keeps dying
STEADY = 30.0  # seconds after which a child counts as well again
WATCH = 0.5  # seconds between two looks


class Child:
    def __init__(self, place: Place, log: Any) -> None:
        self._place, self._log = place, log
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self.deaths = 0

    def keep(self) -> None:
        """Until `stop`. Runs in a green thread of its own."""
        failures = 0
        while not self._stopped:
            began = time.monotonic()
            status = self._run()
            if self._stopped:
                return
            self.deaths += 1
            failures = 0 if time.monotonic() - began > STEADY else failures + 1
            self._log.warning("the hypervisor process ended and is started again", status=status)
            time.sleep(BACKOFF[min(failures, len(BACKOFF) - 1)])

    def stop(self) -> None:
        """End it; SIGKILL is what it is made for."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def fault(self) -> str:
        """Why there is none, or nothing."""
        running = self._process is not None and self._process.poll() is None
        return "" if running and self._place.socket.exists() else "the hypervisor process is being started"

    def _run(self) -> int:
        words = [sys.executable, "-m", "services.hostagent.hypervisor_main", self._place.to_json(), str(os.getpid())]
        self._place.socket.unlink(missing_ok=True)  # so that nobody connects to the one before
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        while self._process.poll() is None:
            time.sleep(WATCH)
        return int(self._process.returncode)
