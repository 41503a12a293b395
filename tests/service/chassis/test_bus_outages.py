"""The broker dies like in a power cut, in the middle of things. Nobody restarts a service for that."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
from collections import Counter

import kombu
import pytest

from chassis import outbox
from contracts import errors
from deploy.stack.wait import free_port
from deploy.stack.wait import until as wait_until
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.process import ROOT, Process
from tests.fakes.services import promises
from tests.service.chassis.test_bus_events import tally_when

UNKNOWN_OR_NOT_DONE = (errors.NoAnswer, errors.ServiceAway, errors.BusAway, errors.Late)


def _call_often(bus: Bus, keys: list[str], ends: dict[str, str]) -> list[threading.Thread]:
    """A nested call for each key, five every 0.1 s; `ends` gets its own text, or how else it ended."""

    def one(key: str) -> None:
        try:
            answer = bus.call(promises.nested, {"text": f"of {key}", "seconds": 0.3, "id": key}, deadline=30)
            ends[key] = answer["text"]
        except UNKNOWN_OR_NOT_DONE as problem:
            ends[key] = problem.code
        except (OSError, kombu.exceptions.OperationalError):  # the test itself found no broker
            ends[key] = "not asked"
        except Exception as fault:
            ends[key] = repr(fault)

    threads = [threading.Thread(target=one, args=(key,), daemon=True) for key in keys]
    for number, thread in enumerate(threads):
        thread.start()
        if number % 5 == 4:
            time.sleep(0.1)
    return threads


def test_nested_calls_have_one_effect_or_end_in_a_declared_unknown(
    bus: Bus, leaf: Process, relay: Process, rabbit: Broker
) -> None:
    """The leaf writes first and answers 0.3 s later: what is written and not answered is under way."""
    bus.call(promises.nested, {"text": "warm"})
    ends: dict[str, str] = {}
    written: set[str] = set()
    keys = [f"call {number}" for number in range(40)]
    asking = threading.Thread(target=lambda: [thread.join(90) for thread in _call_often(bus, keys, ends)])
    asking.start()
    wait_until(
        "calls that are answered, and others under way", lambda: ends and len(_written(leaf)) > len(ends), 60, 0.01
    )
    rabbit.kill()
    answered_before, written = _answered(ends), set(_written(leaf))
    time.sleep(0.5)
    rabbit.start()
    assert answered_before
    assert written - answered_before  # interrupted between their effect and their answer
    asking.join(120)
    assert sorted(ends) == sorted(keys)
    answered = _answered(ends)
    assert {ends[key] for key in keys if key not in answered} <= {"not asked", *(p.code for p in UNKNOWN_OR_NOT_DONE)}
    effects = Counter(_written(leaf))
    assert {key: effects[key] for key in answered} == dict.fromkeys(answered, 1)
    assert max(effects.values()) == 1
    bus.wait_for(promises.tally)
    assert bus.call(promises.nested, {"text": "after"}, deadline=20)["text"] == "after"
    assert leaf.alive()
    assert relay.alive()


def _answered(ends: dict[str, str]) -> set[str]:
    """Those that got their own answer."""
    return {key for key, end in list(ends.items()) if end == f"of {key}"}


def _written(leaf: Process) -> list[str]:
    return [key for (key,) in leaf.rows("effect", "key")]


def test_a_service_that_slept_through_the_death_of_the_broker_listens_again(
    bus: Bus, leaf: Process, rabbit: Broker
) -> None:
    """Its workers wake up first and find the connection broken: whoever listens on it must not get a new one that it
    does not listen on."""
    for _ in range(3):
        bus.wait_for(promises.echo)
        asking = [
            threading.Thread(target=_ignore_problems, args=(bus, {"text": "x", "seconds": 1 + part / 10}), daemon=True)
            for part in range(20)
        ]
        for thread in asking:
            thread.start()
        time.sleep(0.5)
        leaf.freeze()
        rabbit.kill()
        rabbit.start()
        leaf.thaw()
        for thread in asking:
            thread.join(60)
        bus.wait_for(promises.echo)
    assert leaf.log.count("connected to the broker again") >= 3


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


BROKEN = """
from chassis import bus, bus_nameko
import contextlib

class Own:
    connected = True

    def drain_events(self, timeout):
        self.connected = False  # a worker could not acknowledge its message
        raise TimeoutError

    def heartbeat_tick(self):
        pass

class Kombu:
    def __getattr__(self, name):
        raise AssertionError("kombu would connect anew, without consumers")

class Channel:
    connection = Own()

@contextlib.contextmanager
def connected():
    yield Kombu(), Channel(), []

intake = object.__new__(bus_nameko.Intake)
intake.should_stop, intake.on_iteration, intake.consumer_context = False, lambda: None, connected
try:
    next(intake.consume())
except ConnectionResetError as fault:
    print(fault)
"""


def test_a_connection_that_a_worker_found_broken_is_lost_to_who_listens() -> None:
    """Seen 1 time of 4 with a process that was frozen for 48 s: it came back healthy, and deaf."""
    words = [sys.executable, "-c", BROKEN]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "a worker found it broken" in done.stdout, done.stderr


ASKER = """
from chassis import bus
import sys
from chassis import outbox
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
    for untold in (7000, 3000):
        wait_until("the publisher", functools.partial(_at_most, relay, untold), 120, 0.005)
        rabbit.kill()
        left = _untold(relay)
        rabbit.start()  # and nothing is waited for but the publisher, which goes on at once
        assert left > outbox.BATCH  # more than the round that was under way: it was in the middle of its work
    bus.wait_for(promises.tally)
    found = tally_when(bus, lambda found: found["rows"] >= 10_000, 200)
    time.sleep(1)
    found = bus.call(promises.tally, {})
    assert (found["rows"], found["distinct"]) == (10_000, 10_000)


def test_news_that_wait_in_the_broker_survive_its_death(
    bus: Bus, leaf: Process, relay: Process, rabbit: Broker
) -> None:
    leaf.freeze()
    bus.call(promises.burst, {"text": "kept", "count": 3000})
    wait_until("all to be with the broker", lambda: _untold(relay) == 0, 60)
    rabbit.kill()
    rabbit.start()
    assert leaf.rows("said") == []
    leaf.thaw()
    bus.wait_for(promises.tally)
    assert tally_when(bus, lambda found: found["rows"] == 3000)["distinct"] == 3000


@pytest.mark.usefixtures("unmeasured")
def test_a_teller_killed_between_commit_and_publishing_tells_after_its_restart(
    bus: Bus, leaf: Process, relay: Process
) -> None:
    bus.call(promises.burst, {"text": "x", "count": 3000})
    relay.kill()
    assert _untold(relay) > outbox.BATCH
    relay.start()
    # killed before the broker had its acknowledgement, the request itself may come once more and tell all of it anew
    tally_when(bus, lambda found: found["distinct"] == 3000)


def _at_most(relay: Process, untold: int) -> bool:
    return _untold(relay) <= untold


def _untold(relay: Process) -> int:
    """News that are committed and not known to be with the broker."""
    return len(relay.rows("outbox", "id"))


def _ignore_problems(bus: Bus, request: dict[str, object]) -> None:
    try:
        bus.call(promises.echo, request, deadline=10)
    except Exception as fault:
        print(repr(fault))
