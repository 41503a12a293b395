"""The ring of events and its streams."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from contracts import errors, inventory
from gateway.api import stream

ID = "0b0f4c3e-7f0e-4f43-9a3c-2f6a3f1c9f10"


def ring(size: int = 5, limit: int = 2) -> stream.Ring:
    return stream.Ring(size, limit, 0.05)


def add(to: stream.Ring, number: int, **fields: Any) -> None:
    to.add(inventory.vm_changed, {"id": ID, "n": number, **fields}, 1.5)


def begun(to: stream.Ring, wanted: stream.Wish | None = None, last: str | None = None) -> Any:
    frames = to.listen(wanted or stream.Wish(), last)
    next(frames)
    return frames


def test_a_stream_that_the_ring_has_overtaken_ends() -> None:
    made = ring(size=5)
    frames = begun(made)
    for number in range(3):
        add(made, number)
    assert b'"n":0' in next(frames)
    for number in range(20):
        add(made, number)
    rest = list(frames)
    assert len(rest) <= 3  # what it had taken out already
    assert made.streams == 0


def test_who_resumes_gets_what_followed() -> None:
    made = ring()
    for number in range(1, 5):
        add(made, number)
    frames = begun(made, last=f"{made.boot}-2")
    assert b'"n":3' in next(frames)
    assert b'"n":4' in next(frames)


@pytest.mark.parametrize("last", ["{boot}-1", "{boot}-99", "{boot}-x", "other-1", "-", "ä"])
def test_what_cannot_be_resumed_begins_with_a_gap(last: str) -> None:
    made = ring(size=2)
    for number in range(1, 9):
        add(made, number)
    frames = begun(made, last=last.replace("{boot}", made.boot))
    assert b"event: gap" in next(frames)
    assert b'"n":7' in next(frames)


def test_the_newest_id_resumes_without_a_gap() -> None:
    made = ring(size=2)
    for number in range(1, 9):
        add(made, number)
    assert next(begun(made, last=f"{made.boot}-8")).startswith(b": still here")


def test_everybody_hears_that_the_bus_was_away() -> None:
    made = ring()
    frames = begun(made, stream.Wish(frozenset({"disk_changed"}), frozenset({ID})))
    made.miss()
    assert b"event: gap" in next(frames)


def test_news_are_matched_by_any_id_in_them() -> None:
    made, other = ring(), "11111111-1111-4111-8111-111111111111"
    frames = begun(made, stream.Wish(entities=frozenset({other})))
    add(made, 1)
    add(made, 2, host_id=other)
    assert b'"n":2' in next(frames)


def test_there_is_a_limit_of_streams() -> None:
    made = ring(limit=1)
    frames = begun(made)
    with pytest.raises(errors.TooManyStreams):
        made.listen(stream.Wish(), None)
    frames.close()
    begun(made)


@pytest.mark.timeout(60)
def test_stop_ends_a_waiting_stream() -> None:
    made = stream.Ring(5, 5, 3600.0)
    frames = begun(made)
    threading.Timer(0.05, made.stop).start()
    assert list(frames) == []  # an hour before it would have said "still here"


def test_an_event_says_who_what_when() -> None:
    made = ring()
    frames = begun(made)
    made.add(inventory.vm_changed, {"id": ID}, 1.5, "admin", "r-1")
    assert b'"time":"1970-01-01T00:00:01.500Z","user":"admin","request_id":"r-1"' in next(frames)
