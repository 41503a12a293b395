"""News: told with the commit, handled once in effect, never lost, parked when nobody can digest them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chassis import context
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.process import Process
from tests.fakes.services import promises


@pytest.fixture(autouse=True)
def _empty_queues(rabbit: Broker) -> Iterator[None]:
    yield
    for queue in ("evt.relay.said.v1--leaf", "evt.agent.beat.v1--leaf", "parked--leaf"):
        rabbit.purge(queue)


def tally_when(bus: Bus, enough: Callable[[dict[str, Any]], bool], timeout: float = 60.0) -> dict[str, Any]:
    ends = time.monotonic() + timeout
    while True:
        found = bus.call(promises.tally, {}, deadline=20)
        if enough(found):
            return found
        assert time.monotonic() < ends, f"not in {timeout} s: {found}"
        time.sleep(0.2)


def wait_until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    ends = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.1)


def test_news_arrive_with_the_callers_context(bus: Bus, leaf: Process, relay: Process) -> None:
    bus.call(promises.burst, {"text": "hi", "count": 1}, call=context.Call("r7", "f7", "ann"))
    assert tally_when(bus, lambda found: found["rows"] == 1)["callers"] == ["ann r7 f7"]


def test_news_of_a_rolled_back_change_are_never_told(bus: Bus, relay: Process) -> None:
    heard = bus.expect(promises.said)
    bus.call(promises.lost, {})
    bus.call(promises.burst, {"text": "marker", "count": 1})
    assert [news["text"] for news in heard.wait(1)] == ["marker"]


def test_news_are_told_in_order(bus: Bus, relay: Process) -> None:
    heard = bus.expect(promises.said)
    bus.call(promises.burst, {"text": "x", "count": 1000})
    assert [news["number"] for news in heard.wait(1000)] == list(range(1000))


def test_the_same_message_twice_is_handled_once(bus: Bus, leaf: Process) -> None:
    for _ in range(3):
        bus.tell(promises.said, {"text": "again", "number": 1}, message_id="m1")
    bus.tell(promises.said, {"text": "last", "number": 2})
    assert tally_when(bus, lambda found: "last" in found["texts"])["rows"] == 2


def test_poison_is_parked_after_bounded_tries_while_others_flow(bus: Bus, leaf: Process, rabbit: Broker) -> None:
    bus.tell(promises.said, {"text": "poison", "number": 1})
    for number in range(20):
        bus.tell(promises.said, {"text": "fine", "number": number})
    assert tally_when(bus, lambda found: found["rows"] == 20)["texts"] == ["fine"]  # the poison's row was rolled back
    wait_until(lambda: rabbit.count("parked--leaf") == 1)
    assert leaf.log.count("an event will be tried again") == 2
    assert leaf.log.count("an event was parked") == 1


def test_news_that_break_the_promise_are_parked(bus: Bus, leaf: Process, rabbit: Broker) -> None:
    bus.tell_anything(promises.said, {"text": "no number"})
    bus.publish("relay.events", "said.v1", {"text": "no id", "number": 1})
    bus.publish("relay.events", "said.v1", "\x00", content_type="application/json", content_encoding="utf-8")
    wait_until(lambda: rabbit.count("parked--leaf") == 3)


def test_two_instances_share_the_work(bus: Bus, run: Any, rabbit: Broker) -> None:
    both = [run("leaf", instance=name, slow=0.01) for name in ("1", "2")]
    for process in both:
        process.wait_for_log("started")
    for number in range(60):
        bus.tell(promises.said, {"text": "shared", "number": number})
    found = tally_when(bus, lambda found: found["rows"] >= 60)
    assert found["rows"] == found["distinct"] == 60
    assert found["pids"] == sorted(process.pid for process in both)


def test_a_slow_consumer_keeps_its_memory(bus: Bus, run: Any, relay: Process, rabbit: Broker) -> None:
    leaf = run("leaf", slow=0.02)
    leaf.wait_for_log("started")
    bus.call(promises.burst, {"text": "warm", "count": 200})
    tally_when(bus, lambda found: found["rows"] >= 100)
    before = leaf.memory()
    bus.call(promises.burst, {"text": "flood", "count": 5000})
    wait_until(lambda: rabbit.count("evt.relay.said.v1--leaf") > 3000)
    tally_when(bus, lambda found: found["rows"] >= 400)
    assert leaf.memory() - before < 8 * 2**20


def test_an_agent_speaks_for_itself_only(bus: Bus, leaf: Process, rabbit: Broker) -> None:
    agent = Bus(rabbit.add_user("agent-h1", "pw"))
    agent.tell(promises.beat, {"host_id": "h1", "number": 1}, key="h1", user_id="agent-h1")
    agent.tell(promises.beat, {"host_id": "h2", "number": 2}, key="h2", user_id="agent-h1")  # another's key
    agent.tell(promises.beat, {"host_id": "h2", "number": 3}, key="h1", user_id="agent-h1")  # another's name inside
    wait_until(lambda: rabbit.count("parked--leaf") == 2)
    assert tally_when(bus, lambda found: found["rows"] >= 1)["texts"] == ["beat h1"]


def test_unsigned_news_of_agents_are_refused_where_that_is_asked_for(bus: Bus, run: Any, rabbit: Broker) -> None:
    run("leaf", strict_agents=True).wait_for_log("started")
    bus.tell(promises.beat, {"host_id": "h1", "number": 1}, key="h1")
    wait_until(lambda: rabbit.count("parked--leaf") == 1)


def test_unsigned_news_of_agents_are_taken_from_a_single_shared_user(bus: Bus, leaf: Process) -> None:
    bus.tell(promises.beat, {"host_id": "h1", "number": 1}, key="h1", user_id="drystone")
    assert tally_when(bus, lambda found: found["rows"] == 1)["texts"] == ["beat h1"]
