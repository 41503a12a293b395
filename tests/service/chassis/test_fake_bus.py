"""The fake provider is a product: it refuses what the promise refuses."""

from __future__ import annotations

import pytest

from contracts import errors
from tests.fakes.bus import Bus
from tests.fakes.process import Process
from tests.fakes.services import promises

GOOD = {"text": "x", "pid": 1, "left": 1.0, "user": "", "flow_id": None, "request_id": "r"}


def test_a_fake_provider_answers_a_real_service(bus: Bus, relay: Process) -> None:
    asked = bus.answer(promises.echo, lambda request: {**GOOD, "text": request["text"].upper()})
    assert bus.call(promises.nested, {"text": "loud"})["text"] == "LOUD"
    assert asked == [{"text": "loud", "seconds": 0.0, "id": None}]


def test_a_fake_provider_at_one_address_is_reached_there_only(bus: Bus) -> None:
    bus.answer(promises.echo, lambda request: GOOD, at="h1")
    assert bus.call(promises.echo, {"text": "x"}, at="h1")["text"] == "x"
    with pytest.raises(errors.ServiceAway):
        bus.call(promises.echo, {"text": "x"}, at="h2")


def test_a_fake_provider_refuses_what_the_schema_refuses(bus: Bus) -> None:
    bus.answer(promises.echo, lambda request: GOOD)
    with pytest.raises(errors.BadRequest):
        bus.call(promises.echo, {"txt": "x"})


@pytest.mark.parametrize("reply", [{**GOOD, "pid": "many"}, {}])
def test_a_fake_that_breaks_the_promise_is_found_out(bus: Bus, reply: dict[str, object]) -> None:
    bus.answer(promises.echo, lambda request: reply)
    with pytest.raises(errors.InternalError) as caught:
        bus.call(promises.echo, {"text": "x"})
    assert "breaks echo_v1" in str(caught.value)


def test_a_fake_that_raises_an_undeclared_error_is_found_out(bus: Bus) -> None:
    def fail(request: dict[str, object]) -> dict[str, object]:
        raise errors.NotFound(kind="disk", id="d")

    bus.answer(promises.echo, fail)
    with pytest.raises(errors.InternalError) as caught:
        bus.call(promises.echo, {"text": "x"})
    assert "not declared" in str(caught.value)


def test_news_that_break_their_promise_cannot_be_told(bus: Bus) -> None:
    with pytest.raises(errors.BadRequest):
        bus.tell(promises.said, {"text": "x"})
