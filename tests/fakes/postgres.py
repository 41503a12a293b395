"""A private, real PostgreSQL: started as an unprivileged user in a folder of its own, killed and started again."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid

PROGRAMS = pathlib.Path("/usr/lib/postgresql/15/bin")
START_SECONDS = 30.0


class Postgres:
    """One server. `fresh()` makes an empty database and answers its address."""

    def __init__(self) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="drys-pg-", dir="/tmp"))
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self.folder, "nobody", "nogroup")
        subprocess.run(
            [*_unprivileged(), PROGRAMS / "initdb", "-A", "trust", "-U", "drystone", "-N", "-D", self.folder / "data"],
            env=_environment(),
            stdout=subprocess.DEVNULL,
            check=True,
            cwd=self.folder,
        )

    def start(self) -> Postgres:
        options = ["-p", str(self.port), "-k", str(self.folder), "-h", "127.0.0.1", "-c", "fsync=off"]
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_unprivileged(), PROGRAMS / "postgres", "-D", self.folder / "data", *options],
                env=_environment(),
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self._wait_until_ready()
        return self

    def kill(self) -> None:
        """SIGKILL to the server; the connections' processes see that and end by themselves."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut down and leave nothing behind."""
        self._end(signal.SIGINT)
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder.parent / f"{self.folder.name}.log").unlink(missing_ok=True)

    def fresh(self) -> str:
        name = f"t{uuid.uuid4().hex[:12]}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://drystone@127.0.0.1:{self.port}/{name}"

    def run(self, sql: str) -> None:
        """One statement, as the superuser, outside any transaction."""
        subprocess.run(
            [PROGRAMS / "psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", "-d", self.url("postgres"), "-c", sql],
            env=_environment(),
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=30,
        )

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def _wait_until_ready(self) -> None:
        ends = time.monotonic() + START_SECONDS
        ready = [str(PROGRAMS / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process is None or self._process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"PostgreSQL did not start; see {self.folder}.log")
            time.sleep(0.1)


def _unprivileged() -> list[str]:
    """The prefix of a command that gives up root, and dies with the process that started it."""
    if os.getuid() != 0:
        return ["setpriv", "--pdeathsig=KILL"]
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"]


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
