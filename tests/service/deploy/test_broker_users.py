"""What each user may do on the broker, tried on a real one with the permissions that deploy/rabbitmq makes."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import amqp
import pytest

from deploy.rabbitmq import users
from deploy.stack.rabbitmq import RabbitMQ

MINE, OTHER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
RPC = "nameko-rpc"
Enter = Callable[[str], Any]


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    with tempfile.TemporaryDirectory(prefix="ds-") as folder:
        services = {name: name for name in users.SERVICES}
        one = RabbitMQ(Path(folder), users.definitions(services, {MINE: "mine", OTHER: "other"}))
        one.start()
        yield one
        one.end()


@pytest.fixture
def enter(broker: RabbitMQ) -> Iterator[Enter]:
    """A channel, in confirm mode, of the user of this name."""
    passwords = {users.agent_user(MINE): "mine", users.agent_user(OTHER): "other"}
    open_lines = []

    def channel(user: str) -> Any:
        line = amqp.Connection(f"127.0.0.1:{broker.port}", user, passwords.get(user, user), confirm_publish=True)
        line.connect()
        open_lines.append(line)
        return line.channel()

    yield channel
    for line in open_lines:
        with suppress(amqp.AMQPError, OSError):
            line.close()


def requests_of(channel: Any, name: str) -> str:
    """Declare and bind a request queue as chassis does."""
    channel.queue_declare(f"rpc-{name}", durable=True, auto_delete=False)
    channel.queue_bind(f"rpc-{name}", RPC, f"{name}.*")
    return f"rpc-{name}"


def send(channel: Any, exchange: str, key: str, **properties: Any) -> None:
    channel.basic_publish(amqp.Message("{}", **properties), exchange, key)


def test_an_agent_takes_requests_and_answers(enter: Enter) -> None:
    agent, asker = enter(users.agent_user(MINE)), enter("snapshots")
    queue = requests_of(agent, users.agent_user(MINE))
    reply = uuid.uuid4().hex
    asker.queue_declare(f"rpc.reply-snapshots-{reply}", durable=True, auto_delete=False)
    asker.queue_bind(f"rpc.reply-snapshots-{reply}", RPC, f"reply.{reply}")
    send(asker, RPC, f"hostagent-{MINE}.start_vm_v1", reply_to=f"reply.{reply}")
    request = agent.basic_get(queue, no_ack=True)
    send(agent, RPC, request.properties["reply_to"])
    assert asker.basic_get(f"rpc.reply-snapshots-{reply}", no_ack=True) is not None


def test_an_agent_cannot_take_another_agents_requests(enter: Enter) -> None:
    queue = requests_of(enter(users.agent_user(OTHER)), users.agent_user(OTHER))
    with pytest.raises(amqp.AccessRefused):
        enter(users.agent_user(MINE)).basic_get(queue)
    with pytest.raises(amqp.AccessRefused):
        enter(users.agent_user(MINE)).basic_consume(queue)
    with pytest.raises(amqp.AccessRefused):
        enter(users.agent_user(MINE)).queue_delete(queue)


@pytest.mark.parametrize("key", [f"hostagent-{OTHER}.*", "#", "*.*", "inventory.*", f"hostagent-{MINE}x.*"])
def test_an_agent_cannot_have_a_copy_of_what_others_are_asked(enter: Enter, key: str) -> None:
    agent = enter(users.agent_user(MINE))
    queue = requests_of(agent, users.agent_user(MINE))
    with pytest.raises(amqp.AccessRefused):
        agent.queue_bind(queue, RPC, key)


@pytest.mark.parametrize("key", [f"hostagent-{OTHER}.delete_volume_v1", "inventory.delete_vm_v1"])
def test_an_agent_asks_nobody(enter: Enter, key: str) -> None:
    with pytest.raises(amqp.AccessRefused):
        send(enter(users.agent_user(MINE)), RPC, key)


def test_an_agent_tells_news_of_its_own_host_only(enter: Enter) -> None:
    agent = enter(users.agent_user(MINE))
    send(agent, "hostagent.events", f"heartbeat.v1.{MINE}", user_id=users.agent_user(MINE))
    with pytest.raises(amqp.AccessRefused):
        send(agent, "hostagent.events", f"heartbeat.v1.{OTHER}")


def test_an_agent_cannot_sign_as_another(enter: Enter) -> None:
    agent = enter(users.agent_user(MINE))
    with pytest.raises(amqp.PreconditionFailed):
        send(agent, "hostagent.events", f"heartbeat.v1.{MINE}", user_id=users.agent_user(OTHER))


def test_an_agent_hears_nobodys_news(enter: Enter) -> None:
    agent = enter(users.agent_user(MINE))
    queue = requests_of(agent, users.agent_user(MINE))
    for exchange in ("inventory.events", "hostagent.events"):
        with pytest.raises(amqp.AccessRefused):
            enter(users.agent_user(MINE)).queue_bind(queue, exchange, "#")


def test_an_agent_cannot_speak_for_a_service(enter: Enter) -> None:
    with pytest.raises(amqp.AccessRefused):
        send(enter(users.agent_user(MINE)), "inventory.events", "vm_changed.v1")


def test_a_service_cannot_take_another_services_requests(enter: Enter) -> None:
    snapshots = enter("snapshots")
    queue = requests_of(snapshots, "snapshots")
    with pytest.raises(amqp.AccessRefused):
        snapshots.queue_bind(queue, RPC, "inventory.*")


def test_a_service_hears_agents_and_other_services(enter: Enter) -> None:
    inventory, agent = enter("inventory"), enter(users.agent_user(MINE))
    queue = "evt.hostagent.heartbeat.v1--inventory"
    inventory.queue_declare(queue, durable=True, auto_delete=False)
    inventory.queue_bind(queue, "hostagent.events", "heartbeat.v1.*")
    send(agent, "hostagent.events", f"heartbeat.v1.{MINE}", user_id=users.agent_user(MINE))
    assert inventory.basic_get(queue, no_ack=True) is not None
