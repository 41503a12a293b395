"""Nothing stale ever runs."""

from __future__ import annotations

import time

import pytest

from chassis import bus_wire as wire
from contracts import errors
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.process import Process
from tests.fakes.services import promises


def _request(text: str) -> dict[str, object]:
    return {"args": [{"text": text}], "kwargs": {}}


def test_a_request_after_its_deadline_is_refused_and_never_run(bus: Bus, leaf: Process) -> None:
    envelope = bus.ask(promises.echo, _request("late"), headers={wire.DEADLINE: time.time() - 1})
    assert envelope["error"]["code"] == "late"
    assert bus.call(promises.tally, {})["runs"] == 0


@pytest.mark.parametrize("deadline", [None, "soon"])
def test_a_request_without_a_usable_deadline_is_refused(bus: Bus, leaf: Process, deadline: object) -> None:
    envelope = bus.ask(promises.echo, _request("undated"), headers={wire.DEADLINE: deadline} if deadline else {})
    assert envelope["error"]["code"] == "bad_request"
    assert bus.call(promises.tally, {})["runs"] == 0


def test_a_request_that_waited_for_a_frozen_provider_never_runs(bus: Bus, leaf: Process) -> None:
    leaf.freeze()
    with pytest.raises(errors.NoAnswer):
        bus.call(promises.echo, {"text": "stale"}, deadline=0.5)
    leaf.thaw()
    assert bus.call(promises.echo, {"text": "fresh"})["text"] == "fresh"
    assert bus.call(promises.tally, {})["runs"] == 1


def test_a_request_to_a_stopped_provider_expires_in_the_queue(bus: Bus, leaf: Process, rabbit: Broker) -> None:
    leaf.kill()
    with pytest.raises(errors.NoAnswer):
        bus.call(promises.echo, {"text": "stale"}, deadline=0.5)
    assert rabbit.count("rpc-leaf") == 0
    leaf.start()
    assert bus.call(promises.tally, {}, deadline=30)["runs"] == 0


def test_a_service_that_has_been_gone_for_long_is_away_at_once(bus: Bus, relay: Process, rabbit: Broker) -> None:
    rabbit.delete("rpc-leaf")  # what the broker does by itself after a minute without a consumer
    with pytest.raises(errors.ServiceAway):  # after the deadline it would be NoAnswer
        bus.call(promises.nested, {"text": "x"}, deadline=30)


@pytest.mark.parametrize(
    "body", ["text", [], {"args": []}, {"args": [{"text": "x"}, 2], "kwargs": {}}, {"args": [7], "kwargs": {}}]
)
def test_a_malformed_request_is_refused_and_harms_nobody(bus: Bus, leaf: Process, body: object) -> None:
    envelope = bus.ask(promises.echo, body, headers={wire.DEADLINE: time.time() + 10})
    assert envelope["error"]["code"] == "bad_request"
    assert bus.call(promises.echo, {"text": "still here"})["text"] == "still here"
