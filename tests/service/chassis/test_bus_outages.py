"""The broker dies like in a power cut, in the middle of things. Nobody restarts a service for that."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter

import kombu
import pytest

from contracts import errors
from deploy.stack.wait import free_port
from deploy.stack.wait import until as wait_until
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.process import ROOT, Process
from tests.fakes.services import promises
from tests.service.chassis.test_bus_events import tally_when

UNKNOWN_OR_NOT_DONE = (errors.NoAnswer, errors.ServiceAway, errors.BusAway, errors.Late)


def _call_often(bus: Bus, calls: int, outcomes: Counter[str]) -> list[threading.Thread]:
    def one(number: int) -> None:
        try:
            bus.call(promises.nested, {"text": f"n{number}", "seconds": 0.3}, deadline=30)
            outcomes["answered"] += 1
        except UNKNOWN_OR_NOT_DONE as problem:
            outcomes[problem.code] += 1
        except (OSError, kombu.exceptions.OperationalError):  # the test itself found no broker
            outcomes["not asked"] += 1
        except Exception as fault:
            outcomes[repr(fault)] += 1

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(calls)]
    for number, thread in enumerate(threads):
        thread.start()
        if number % 5 == 4:
            time.sleep(0.1)
    return threads


def test_calls_end_in_an_answer_or_a_declared_unknown_and_the_services_go_on(
    bus: Bus, leaf: Process, relay: Process, rabbit: Broker
) -> None:
    outcomes: Counter[str] = Counter()
    bus.call(promises.nested, {"text": "warm"})
    threads = _call_often(bus, 40, outcomes)
    rabbit.kill()
    time.sleep(0.5)
    rabbit.start()
    for thread in threads:
        thread.join(60)
    known = {"answered", "not asked", *(problem.code for problem in UNKNOWN_OR_NOT_DONE)}
    assert sum(outcomes.values()) == 40
    assert set(outcomes) <= known, outcomes
    tally_when(bus, lambda found: found["runs"] > 0)
    assert bus.call(promises.nested, {"text": "after"}, deadline=20)["text"] == "after"
    assert leaf.alive()
    assert relay.alive()


def test_a_reply_that_finds_no_broker_does_not_end_the_service(bus: Bus, leaf: Process, rabbit: Broker) -> None:
    thread = threading.Thread(target=_ignore_problems, args=(bus, {"text": "x", "seconds": 1.0}), daemon=True)
    thread.start()
    time.sleep(0.5)
    rabbit.kill()
    time.sleep(2)
    assert leaf.alive()
    rabbit.start()
    thread.join(60)
    bus.wait_for(promises.echo)
    assert bus.call(promises.echo, {"text": "still here"}, deadline=20)["text"] == "still here"


ASKER = """
from chassis import bus
import sys
from contracts import errors
from tests.fakes.services import promises
client = bus.Client(sys.argv[1], "asker")
for attempt in range(2):
    try:
        client.call(promises.echo, {"text": "x"}, deadline=3600)
    except errors.BusAway as problem:
        print("BusAway", problem.fields["reason"])
"""


def _ask_at(uri: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ASKER, uri], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


WAITER = """
from chassis import bus
import sys
from tests.fakes.services import promises
client = bus.Client(sys.argv[1], "waiter")
print("asks", flush=True)
print(client.call(promises.echo, {"text": "x", "seconds": 6.0}, deadline=120)["text"], flush=True)
"""


def test_an_answer_that_is_made_while_the_broker_is_dead_still_comes_once(
    bus: Bus, leaf: Process, rabbit: Broker
) -> None:
    """So a call must not be given up because the broker came back without a word of it."""
    words = [sys.executable, "-c", WAITER, rabbit.uri]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as waiter:
        wait_until("the request is being answered", lambda: bus.call(promises.tally, {})["runs"] == 1, 60)
        rabbit.kill()
        rabbit.start()
        told = waiter.communicate(timeout=120)[0].split()
    assert (told, waiter.returncode) == (["asks", "x"], 0)
    bus.wait_for(promises.tally)
    assert bus.call(promises.tally, {}, deadline=60)["runs"] == 1


def test_calls_while_the_broker_is_away_end_quickly_with_a_reason() -> None:
    lines = _ask_at(f"amqp://guest:secret@127.0.0.1:{free_port()}//")
    assert len(lines) == 2
    assert all("nothing listens at" in line for line in lines)  # long before the hour of their deadline
    assert "secret" not in str(lines)


def test_a_call_with_a_wrong_password_says_so(rabbit: Broker) -> None:
    assert all("refuses this user and password" in line for line in _ask_at(rabbit.uri_of("drystone", "wrong")))


@pytest.mark.usefixtures("unmeasured")
def test_a_burst_of_news_survives_two_deaths_of_the_broker(
    bus: Bus, leaf: Process, relay: Process, rabbit: Broker
) -> None:
    bus.call(promises.burst, {"text": "burst", "count": 10_000})
    for threshold in (1000, 4000):
        tally_when(bus, lambda found, least=threshold: found["rows"] >= least, 120)  # type: ignore[misc]
        rabbit.kill()
        rabbit.start()
        bus.wait_for(promises.tally)
    found = tally_when(bus, lambda found: found["rows"] >= 10_000, 200)
    time.sleep(1)
    found = bus.call(promises.tally, {})
    assert (found["rows"], found["distinct"]) == (10_000, 10_000)


def test_news_told_while_the_broker_is_away_arrive_later(
    bus: Bus, leaf: Process, relay: Process, rabbit: Broker
) -> None:
    leaf.freeze()
    bus.call(promises.burst, {"text": "kept", "count": 3000})
    rabbit.kill()
    rabbit.start()
    leaf.thaw()
    bus.wait_for(promises.tally)
    assert tally_when(bus, lambda found: found["rows"] == 3000)["distinct"] == 3000


@pytest.mark.usefixtures("unmeasured")
def test_a_teller_killed_between_commit_and_publishing_tells_after_its_restart(
    bus: Bus, leaf: Process, relay: Process
) -> None:
    bus.call(promises.burst, {"text": "x", "count": 3000})
    relay.kill()
    relay.start()
    # killed before the broker had its acknowledgement, the request itself may come once more and tell all of it anew
    tally_when(bus, lambda found: found["distinct"] == 3000)


def _ignore_problems(bus: Bus, request: dict[str, object]) -> None:
    try:
        bus.call(promises.echo, request, deadline=10)
    except Exception as fault:
        print(repr(fault))
