"""GET /events: the stream of a real gateway, fed by real news on RabbitMQ."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from client import api
from contracts import inventory
from tests.fakes.bus import Bus
from tests.service.gateway.door import Door
from tests.service.gateway.world import NOW, Row


def center(name: str, **more: Any) -> Row:
    mac = "56:6f:1a:00:00:00"
    row = {"id": str(uuid.uuid4()), "name": name, "description": "", "mac_first": mac, "mac_last": mac}
    return row | {"leases": True, "io_timeout": 10, "version": 1, "created_at": NOW} | more


@pytest.fixture
def client(door: Door) -> Iterator[api.Client]:
    with api.Client(door.address, door.token) as made:
        yield made


class Listener:
    """Follows in a thread; `news` grows."""

    def __init__(self, client: api.Client, **wanted: Any) -> None:
        self.news: list[Any] = []
        self._more = threading.Condition()
        threading.Thread(target=self._run, args=(client, wanted), daemon=True).start()

    def _run(self, client: api.Client, wanted: dict[str, Any]) -> None:
        try:
            for news in client.events(**wanted):
                with self._more:
                    self.news.append(news)
                    self._more.notify_all()
        except RuntimeError:
            return  # the test has closed the client

    def until(self, name: str) -> list[Any]:
        with self._more:
            assert self._more.wait_for(lambda: name in [_name(news) for news in self.news], 20), self.news
            return list(self.news)


def _name(news: Row) -> str:
    return str(news.get("entity", {}).get("name"))


def start(client: api.Client, bus: Bus, **wanted: Any) -> Listener:
    """A listener that has begun to hear: marks are told until one arrives."""
    listener = Listener(client, **wanted)
    for _ in range(100):
        row = center("mark", id=wanted.get("entities", [str(uuid.uuid4())])[0])
        bus.tell(inventory.data_center_changed, row)
        with listener._more:
            if listener._more.wait_for(lambda: bool(listener.news), 0.2):
                return listener
    raise AssertionError("the stream heard nothing")


def test_news_arrive_with_their_type_and_entity(client: api.Client, bus: Bus) -> None:
    listener = start(client, bus)
    row = center("north")
    bus.tell(inventory.data_center_changed, row)
    news = listener.until("north")[-1]
    assert (news["type"], news["source"], news["entity"]) == ("data_center_changed", "inventory", row)


def test_a_stream_hears_only_what_it_asked_for(client: api.Client, bus: Bus) -> None:
    wanted = str(uuid.uuid4())
    listener = start(client, bus, types=["data_center_changed"], entities=[wanted])
    bus.tell(inventory.data_center_changed, center("other"))
    bus.tell(inventory.data_center_deleted, {"id": wanted})
    bus.tell(inventory.data_center_changed, center("mine", id=wanted))
    assert {_name(news) for news in listener.until("mine")} == {"mark", "mine"}


def test_who_comes_back_gets_what_was_missed(client: api.Client, bus: Bus) -> None:
    last = start(client, bus).news[0]["id"]
    names = [f"n{number}" for number in range(5)]
    for name in names:
        bus.tell(inventory.data_center_changed, center(name))
    heard = Listener(client, last_id=last).until(names[-1])
    assert [_name(news) for news in heard if _name(news) != "mark"] == names


def test_a_gap_is_said_when_the_missed_ones_have_left_the_buffer(client: api.Client, bus: Bus) -> None:
    first = start(client, bus)
    for number in range(60):  # the buffer holds 50
        bus.tell(inventory.data_center_changed, center(f"g{number}"))
    first.until("g59")
    again = Listener(client, last_id=first.news[0]["id"]).until("g59")
    assert again[0]["type"] == "gap"
    assert "missed" in again[0]["message"]


def test_an_id_of_an_earlier_gateway_is_a_gap(client: api.Client, bus: Bus) -> None:
    bus.tell(inventory.data_center_changed, center("z"))
    heard = Listener(client, last_id="0123456789ab-7").until("z")
    assert heard[0]["type"] == "gap"


def test_a_silent_stream_has_heartbeats(door: Door) -> None:
    head = {"Authorization": f"Bearer {door.token}"}
    query = {"entity": str(uuid.uuid4())}
    with httpx.stream("GET", f"{door.address}/api/v1/events", headers=head, params=query, trust_env=False) as stream:
        lines = stream.iter_lines()
        assert any(line.startswith(": still here") for line in lines)
