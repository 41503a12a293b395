"""With RabbitMQ users that may do only what their part needs."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import Any

import pytest

from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.process import ROOT
from tests.fakes.services import promises

AGENT = """
from chassis import bus
import sys
from contracts import errors
from tests.fakes.services import promises
client = bus.Client(sys.argv[1], "agent-h1")
for key in sys.argv[2:]:
    try:
        client.tell(promises.beat, {"host_id": key, "number": 1}, key=key, timeout=10)
        print("told", key)
    except errors.BusAway as problem:
        print("refused", key)
"""


@pytest.fixture
def agent_uri(rabbit: Broker, bus: Bus) -> str:
    """An agent's user: it may tell, under its own key, on an exchange that the set-up made."""
    bus.expect(promises.beat)
    user = f"agent-h1-{uuid.uuid4().hex[:6]}"
    uri = rabbit.add_user(user, "pw")
    rabbit.ctl("set_permissions", user, "^rpc.*agent-h1.*$", r"^(nameko-rpc|agent\.events)$", "^rpc.*agent-h1.*$")
    rabbit.ctl("set_topic_permissions", user, "agent.events", r"\.h1$", "^$")
    return uri


def told(uri: str, *keys: str) -> list[str]:
    command = [sys.executable, "-c", AGENT, uri, *keys]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_an_agent_that_may_not_declare_can_tell_under_its_own_key_only(agent_uri: str) -> None:
    assert told(agent_uri, "h1", "h2", "h1") == ["told h1", "refused h2", "told h1"]


def test_a_service_runs_with_the_rights_that_its_names_need(run: Any, rabbit: Broker, bus: Bus) -> None:
    bus.expect(promises.said)
    bus.expect(promises.beat)
    uri = rabbit.add_user("leaf", "pw")
    own = r"rpc-leaf|rpc\.reply-leaf-.*|evt\..*--leaf|(wait|again|parked)--leaf.*|leaf\.events"
    rabbit.ctl("set_permissions", "leaf", f"^({own})$", f"^({own}|nameko-rpc)$", rf"^({own}|nameko-rpc|.*\.events)$")
    leaf = run("leaf", amqp_uri=uri)
    leaf.wait_for_log("started")
    assert bus.call(promises.echo, {"text": "x"})["text"] == "x"
    bus.tell(promises.said, {"text": "poison", "number": 1})
    leaf.wait_for_log("an event was parked")
