"""Requests and their answers, on the real broker with real processes."""

from __future__ import annotations

import time

import pytest

from chassis import bus_wire as wire
from chassis import context
from contracts import errors
from tests.fakes.bus import Bus
from tests.fakes.process import Process
from tests.fakes.services import promises


def test_a_call_is_answered(bus: Bus, leaf: Process) -> None:
    assert bus.call(promises.echo, {"text": "hello"})["text"] == "hello"


def test_nested_calls_end_before_the_first_callers_deadline(bus: Bus, leaf: Process, relay: Process) -> None:
    assert 0 < bus.call(promises.nested, {"text": "x"}, deadline=9)["left"] <= 9  # the promise's own is 10 s
    body = {"args": [{"text": "x", "seconds": 600}], "kwargs": {}}
    envelope = bus.ask(promises.nested, body, headers={wire.DEADLINE: time.time() + 3}, seconds=60)
    assert envelope["error"]["code"] == "no_answer"
    assert envelope["error"]["fields"]["seconds"] <= 3


def test_the_call_context_reaches_the_last_service(bus: Bus, leaf: Process, relay: Process) -> None:
    call = context.Call(request_id="r1", flow_id="f1", user="ann")
    reply = bus.call(promises.nested, {"text": "x"}, call=call)
    assert (reply["request_id"], reply["flow_id"], reply["user"]) == ("r1", "f1", "ann")


def test_a_declared_error_arrives_with_its_fields(bus: Bus, leaf: Process) -> None:
    with pytest.raises(errors.DiskBusy) as caught:
        bus.call(promises.fail, {"how": "declared"})
    assert caught.value.fields == {"disk_id": "d1", "flow_id": "f1"}


@pytest.mark.parametrize("how", ["undeclared problem", "wrong shape", "exception"])
def test_anything_undeclared_arrives_as_internal_error_with_an_id_that_the_log_has(
    bus: Bus, leaf: Process, how: str
) -> None:
    with pytest.raises(errors.InternalError) as caught:
        bus.call(promises.fail, {"how": how})
    assert caught.value.fields["correlation_id"] in leaf.log
    assert "secret detail" not in str(caught.value)


def test_a_request_that_breaks_the_schema_is_refused_by_name(bus: Bus, leaf: Process) -> None:
    with pytest.raises(errors.BadRequest) as caught:
        bus.call(promises.echo, {"text": "x", "colour": "red"})
    assert "colour" in str(caught.value)


def test_an_unknown_service_is_away_at_once(bus: Bus, relay: Process) -> None:
    with pytest.raises(errors.ServiceAway):  # after the deadline it would be NoAnswer
        bus.call(promises.echo, {"text": "x"}, at="nowhere")
