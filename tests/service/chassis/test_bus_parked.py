"""What a person does with parked news."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.fakes import broker
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.process import ROOT, Process
from tests.fakes.services import promises
from tests.service.chassis.test_bus_events import tally_when, wait_until


def parked(rabbit: Broker, *arguments: str) -> str:
    environment = {**os.environ, "DRYSTONE_AMQP_URI": rabbit.uri}
    done = subprocess.run(
        [sys.executable, "-m", "chassis.bus_parked", *arguments],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


@pytest.fixture
def two_parked(bus: Bus, leaf: Process, rabbit: Broker) -> Broker:
    """One that its handler cannot digest, one that speaks in another's name."""
    bus.tell(promises.said, {"text": "poison", "number": 1}, message_id="m-poison")
    bus.tell(promises.beat, {"host_id": "h2", "number": 1}, key="h1", message_id="m-forged")
    wait_until(lambda: rabbit.count("parked--leaf") == 2)
    return rabbit


@pytest.fixture(scope="module")
def rabbit() -> Iterator[Broker]:
    """A broker of this file's own: what other tests' news wait for there is parked whenever its time comes."""
    with broker.running() as made:
        yield made


@pytest.fixture(autouse=True)
def empty(rabbit: Broker) -> Iterator[None]:
    yield
    rabbit.purge("parked--leaf")


def test_the_list_tells_what_is_parked_and_why_and_changes_nothing(two_parked: Broker) -> None:
    for _ in range(2):
        text = parked(two_parked, "list", "leaf")
        assert "m-poison" in text
        assert "ValueError: cannot digest it" in text
        assert "speaks for host_id h2 under the key h1" in text
    assert two_parked.count("parked--leaf") == 2


def test_returned_news_reach_their_handler_again(two_parked: Broker, bus: Bus, leaf: Process) -> None:
    leaf.kill()
    leaf.settings["appetite"] = "all"  # the cause was mended
    leaf.start()
    parked(two_parked, "return", "leaf", "m-poison")
    assert tally_when(bus, lambda found: found["rows"] == 1)["texts"] == ["poison"]
    assert two_parked.count("parked--leaf") == 1


def test_returning_does_not_make_forged_news_true(two_parked: Broker, bus: Bus) -> None:
    parked(two_parked, "return", "leaf", "m-forged")
    wait_until(lambda: two_parked.count("parked--leaf") == 2)
    assert bus.call(promises.tally, {})["rows"] == 0


def test_only_named_news_are_dropped(two_parked: Broker) -> None:
    assert "Name the ids" in parked(two_parked, "drop", "leaf")
    parked(two_parked, "drop", "leaf", "m-forged")
    assert two_parked.count("parked--leaf") == 1
