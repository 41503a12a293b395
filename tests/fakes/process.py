"""A process of ours under a test: started with settings of its own, killed or stopped, its log at hand."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Process:
    """`python -m module` with DRYSTONE_* from `settings` (names in lower case)."""

    def __init__(self, module: str, folder: pathlib.Path, **settings: Any) -> None:
        self.module, self.folder = module, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.settings = {"state_dir": str(folder), "log_level": "info", **settings}
        self.log_path = folder / f"{module.rsplit('.', 1)[-1]}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        # whole services are not measured here: it makes them slow, and their rules have tests of their own
        left_out = ("DRYSTONE_", "COVERAGE_") if self.module.startswith("services.") else ("DRYSTONE_",)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        ours = {f"DRYSTONE_{name.upper()}": str(value) for name, value in self.settings.items()}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module], env={**kept, **ours}, cwd=ROOT, stdout=log, stderr=log
            )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, timeout: float = 60.0) -> int:
        """Until it ends by itself (seconds); answers its code."""
        assert self._process is not None
        return self._process.wait(timeout)

    def wait_for_log(self, text: str, timeout: float = 60.0) -> None:
        ends = time.monotonic() + timeout
        while text not in self.log:
            assert time.monotonic() < ends, f"{text!r} is not in the log after {timeout} s:\n{self.log[-3000:]}"
            assert self.alive() or text in self.log, f"it ended:\n{self.log[-3000:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """Like a power cut."""
        self._end(signal.SIGKILL, 60)

    def stop(self, timeout: float = 60.0) -> int | None:
        """In good order; answers its code."""
        return self._end(signal.SIGTERM, timeout)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def rows(self, table: str, columns: str = "*") -> list[tuple[Any, ...]]:
        """What it has committed to its SQLite file, read beside it; it may be frozen or dead."""
        file = self.folder / f"{self.module.rsplit('.', 1)[-1]}.sqlite"
        with contextlib.closing(sqlite3.connect(file, timeout=20)) as connection:
            return connection.execute(f"SELECT {columns} FROM {table}").fetchall()  # noqa: S608 - names from the test

    def memory(self) -> int:
        """Resident bytes."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def cpu(self) -> float:
        """Seconds of processor time used so far."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _end(self, number: int, timeout: float) -> int | None:
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(60)
            raise AssertionError(f"{self.module} did not stop within {timeout} s:\n{self.log[-3000:]}") from None
