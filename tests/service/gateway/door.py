"""A real gateway process, and the real command, for tests."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

ROOT = pathlib.Path(__file__).parents[3]


@dataclass
class Door:
    """One gateway in a folder of its own. `options` are settings without their DRYSTONE_ prefix."""

    folder: pathlib.Path
    amqp_uri: str
    options: dict[str, str] = field(default_factory=dict)
    address: str = ""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def token_file(self) -> pathlib.Path:
        return self.folder / "admin-token"

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, seconds: float = 30.0) -> Door:
        self.spawn()
        ends = time.monotonic() + seconds
        while not self.address:
            assert self._process is not None
            assert self._process.poll() is None, f"the gateway ended:\n{self.log}"
            assert time.monotonic() < ends, f"the gateway does not listen:\n{self.log}"
            time.sleep(0.05)
            self.address = self._said_address()
        return self

    def spawn(self) -> subprocess.Popen[bytes]:
        settings = {"AMQP_URI": self.amqp_uri, "STATE_DIR": str(self.folder), "HTTP_PORT": "0", "LOG_JSON": "true"}
        environ = {f"DRYSTONE_{name}": value for name, value in (settings | self.options).items()}
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway"],
                env={"PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore", **environ},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        return self._process

    def stop(self) -> int:
        """SIGTERM; answers the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(20)

    def _said_address(self) -> str:
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return next((str(line["address"]) for line in lines if line.get("event") == "listening"), "")

    def http(self, **options: Any) -> httpx.Client:
        head = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=f"{self.address}/api/v1", headers=head, timeout=30, trust_env=False, **options)

    def command(self, *words: str, environ: dict[str, str] | None = None) -> Ran:
        """The real `drystone` in a process of its own, without a terminal."""
        here = {"DRYSTONE_ADDRESS": self.address, "DRYSTONE_TOKEN_FILE": str(self.token_file)}
        return run(*words, environ=here | (environ or {}))


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


def run(*words: str, environ: dict[str, str] | None = None) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "client.command", *words],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", **(environ or {})},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
