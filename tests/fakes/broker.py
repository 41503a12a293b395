"""The stack's RabbitMQ (deploy/stack/rabbitmq.py) with what tests look at and change on top."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import amqp
import kombu

from deploy.stack.rabbitmq import RabbitMQ

CONNECT = 20.0  # seconds for one connection to the broker
USER = "drystone"


class Broker(RabbitMQ):
    """`uri` is its address as a user who may do everything."""

    def add_user(self, user: str, password: str) -> str:
        """A user with all rights; answers its address."""
        self.ctl("add_user", user, password)
        self.ctl("set_permissions", user, ".*", ".*", ".*")
        return self.uri_of(user, password)

    def add_host(self, name: str) -> str:
        """A virtual host of its own; answers its address."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, USER, ".*", ".*", ".*")
        return self.uri.removesuffix("//") + f"/{name}"

    def count(self, queue: str) -> int:
        """Messages that are ready in the queue (0 when there is no such queue)."""
        with self._channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except amqp.NotFound:
                return 0

    def purge(self, queue: str) -> None:
        """Empty a queue, if there is one."""
        with self._channel() as channel, contextlib.suppress(amqp.NotFound):
            channel.queue_purge(queue)

    def delete(self, queue: str) -> None:
        with self._channel() as channel:
            channel.queue_delete(queue)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[amqp.Channel]:
        with kombu.Connection(self.uri, connect_timeout=CONNECT) as connection:
            yield connection.default_channel


@contextlib.contextmanager
def running() -> Iterator[Broker]:
    """A private broker in a folder that vanishes with it. Who kills it must start it again."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ds-rmq-", dir="/tmp"))
    broker = Broker(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.end()
        shutil.rmtree(folder, ignore_errors=True)
