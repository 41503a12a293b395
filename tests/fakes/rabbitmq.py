"""A private, real RabbitMQ: started, killed like a power cut, started again on the same data."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any

import amqp
import kombu

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
CONTROL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
START_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Rabbit:
    """One node on ports and in a folder of its own. `uri` is its address as guest."""

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        self._owned = folder is None
        self.folder = folder or pathlib.Path(tempfile.mkdtemp(prefix="drys-rmq-", dir="/tmp"))
        self.port = free_port()
        self.node = f"drys{self.port}@localhost"
        self._epmd_port = free_port()
        self._dist_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._configure()
        self._epmd = self._start_epmd()

    @property
    def uri(self) -> str:
        return self.uri_as("guest", "guest")

    def uri_as(self, user: str, password: str) -> str:
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}//"

    def start(self) -> Rabbit:
        log = (self.folder / "server.out").open("ab")
        self._process = subprocess.Popen(
            [SERVER], env=self._environment(), stdout=log, stderr=log, start_new_session=True, cwd=self.folder
        )
        log.close()
        self._wait_until_ready()
        return self

    def kill(self) -> None:
        """SIGKILL to the whole node: nothing is flushed, no connection is closed politely."""
        if self._process is not None:
            for pid in _children_of(self._process.pid):
                _signal(pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        """Shut down and leave nothing behind."""
        self.kill()
        self._epmd.kill()
        self._epmd.wait(10)
        if self._owned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node. Raises CalledProcessError with its output."""
        done = subprocess.run(
            [CONTROL, "-q", "-n", self.node, *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def add_user(self, user: str, password: str) -> str:
        """A user with all rights; answers its address."""
        self.control("add_user", user, password)
        self.control("set_permissions", user, ".*", ".*", ".*")
        return self.uri_as(user, password)

    def count(self, queue: str) -> int:
        """Messages that are ready in the queue (0 when there is no such queue)."""
        with kombu.Connection(self.uri, connect_timeout=5) as connection:
            try:
                return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
            except amqp.NotFound:
                return 0

    def purge(self, queue: str) -> None:
        """Empty a queue, if there is one."""
        with kombu.Connection(self.uri, connect_timeout=5) as connection, contextlib.suppress(amqp.NotFound):
            connection.default_channel.queue_purge(queue)

    def delete(self, queue: str) -> None:
        with kombu.Connection(self.uri, connect_timeout=5) as connection:
            connection.default_channel.queue_delete(queue)

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self.port}\n"
            "distribution.listener.interface = 127.0.0.1\n"
            "disk_free_limit.absolute = 10MB\n"
            "log.console = false\n"
        )
        (self.folder / "plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # two schedulers: the machine is shared, and idle ones of the many more busy-wait
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def _start_epmd(self) -> subprocess.Popen[bytes]:
        """In the foreground, so that its id is known; the node would start one that outlives it."""
        epmd = shutil.which("epmd") or "/usr/bin/epmd"
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([epmd], env=self._environment(), stdout=quiet, stderr=quiet)
        _wait_for_port(self._epmd_port, process, 10.0)
        return process

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        _wait_for_port(self.port, self._process, START_SECONDS)
        ends = time.monotonic() + START_SECONDS
        while True:
            try:
                with kombu.Connection(self.uri, connect_timeout=2) as connection:
                    connection.transport.establish_connection().close()
                    return
            except Exception:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.2)


def _wait_for_port(port: int, process: subprocess.Popen[Any], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode} before it listened on {port}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port} after {seconds} s")


def _children_of(pid: int) -> list[int]:
    """The process and all below it, leaves last."""
    found = [pid]
    for parent in found:
        for task in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in task.read_text().split())
            except OSError:
                continue
    return found


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
