"""A private RabbitMQ in a room, on a free port of 127.0.0.1; dies with SIGKILL and comes back on the same port."""

import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.stack import wait
from deploy.stack.room import Room, RoomGone, Running, wait_for_port

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # not the wrapper in PATH, which wants its own user
AMQP_GREETING = b"AMQP\x00\x00\x09\x01"
# Two schedulers that sleep instead of spinning: on a small machine the broker must not eat the core of its users.
ERLANG = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"


def open_door() -> dict[str, Any]:
    """Definitions with one user that may do everything: drystone / drystone on the virtual host /."""
    return {
        "vhosts": [{"name": "/"}],
        "users": [{"name": "drystone", "password": "drystone", "tags": "administrator"}],
        "permissions": [{"user": "drystone", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
    }


@dataclass
class RabbitMQ:
    """`folder` must be short-lived and ours. `definitions` as RabbitMQ's own JSON (users, permissions, queues)."""

    folder: Path
    definitions: dict[str, Any] = field(default_factory=open_door)
    keep: bool = False
    port: int = 0
    room: Room | None = None
    _server: Running | None = None

    @property
    def uri(self) -> str:
        return self.uri_of("drystone", "drystone")

    def uri_of(self, user: str, password: str) -> str:
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}//"

    @property
    def pid(self) -> int:
        """The real pid of the Erlang machine."""
        return self._running().pid

    def start(self, seconds: float = 60.0) -> None:
        """Start (again) and wait until it answers; messages and queues that were durable are still there."""
        if self._server is not None and self._server.alive():
            return
        if self.room is None:
            self._prepare()
        assert self.room is not None  # noqa: S101  for mypy
        self._server = self.room.spawn("rabbitmq", [SERVER], self._environment())
        wait_for_port(self.port, AMQP_GREETING, self._server, self.room.log_file("rabbitmq"), seconds)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._running().kill()

    def stop(self) -> None:
        """An orderly end of the broker; `start` brings it back."""
        self._running().end(30)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self._running().signal(signal.SIGSTOP)

    def cont(self) -> None:
        self._running().signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def end(self) -> None:
        """Kill all of it, with its port mapper; the folder stays."""
        if self.room is not None:
            self.room.end()
        self.room = self._server = None

    def ctl(self, *words: str, seconds: float = 60.0) -> str:
        """rabbitmqctl, slow (2 s): `ctl("list_queues", "name", "messages")`."""
        if self.room is None:
            raise RoomGone("RabbitMQ was not started")
        argv = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "-q", "-n", self._node, *words]
        return self.room.run(argv, self._environment(), seconds)

    def import_definitions(self, definitions: dict[str, Any]) -> None:
        """Add users, permissions, queues to the running broker."""
        path = self.folder / "more.json"
        path.write_text(json.dumps(definitions))
        self.ctl("import_definitions", str(path))

    @property
    def _node(self) -> str:
        return f"ds{self.port}@localhost"

    def _running(self) -> Running:
        if self._server is None:
            raise RoomGone("RabbitMQ was not started")
        return self._server

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or wait.free_port()
        self._distribution = wait.free_port()
        self._mapper = wait.free_port()
        (self.folder / "definitions.json").write_text(json.dumps(self.definitions))
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self.port}\n"
            "distribution.listener.interface = 127.0.0.1\n"
            f"load_definitions = {self.folder}/definitions.json\n"
            # the machine's fill level is not what the tests are about
            "disk_free_limit.absolute = 50MB\n"
        )
        self.room = Room("rabbitmq", self.folder, keep=self.keep)
        self.room.start()

    def _environment(self) -> dict[str, str]:
        own = str(self.folder)
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": own,
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_CONFIG_FILE": f"{own}/rabbitmq.conf",
            "RABBITMQ_MNESIA_BASE": f"{own}/mnesia",
            "RABBITMQ_LOG_BASE": f"{own}/log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{own}/plugins",
            # no shell between us and Erlang, so that our signals reach it
            "RUNNING_UNDER_SYSTEMD": "1",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
            "ERL_EPMD_PORT": str(self._mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
