"""GET /events: what happens, as server-sent events.

All streams read from one ring of the latest events, each with its own position: a slow client costs nothing, and
when the ring has overtaken it, it is dropped. A client that comes back names the last event it saw; when that one
has left the ring, or when the gateway itself missed news, the stream says so with an event `gap`.
"""

from __future__ import annotations

import collections
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from contracts import errors, inventory, snapshots
from contracts import fields as f
from contracts.promise import Event

# Hosts' own events (heartbeats, block jobs) are raw material that these are made of.
EVENTS: tuple[Event, ...] = tuple(
    value for module in (inventory, snapshots) for value in vars(module).values() if isinstance(value, Event)
)
TYPES = frozenset(event.name for event in EVENTS)
GAP = "gap"
_UUID = re.compile(rf"{f.UUID}\Z")


@dataclass(frozen=True)
class News:
    """One event in the ring. `number` counts up from 1; `entities` are all ids that it is about."""

    number: int
    type: str
    text: str
    entities: frozenset[str]


@dataclass(frozen=True)
class Wish:
    """What a client wants to hear; empty means everything."""

    types: frozenset[str] = frozenset()
    entities: frozenset[str] = frozenset()

    def takes(self, news: News) -> bool:
        if news.type == GAP:
            return True
        about = not self.entities or bool(self.entities & news.entities)
        return about and (not self.types or news.type in self.types)


def wish(query: dict[str, list[str]]) -> Wish:
    """`type` and `entity`, each repeated or with commas. Raises BadRequest."""
    faults = {name: ["Unknown parameter."] for name in query if name not in ("type", "entity")}
    types, entities = (frozenset(",".join(query.get(name, [])).split(",")) - {""} for name in ("type", "entity"))
    if types - TYPES:
        faults["type"] = [f"Unknown: {', '.join(sorted(types - TYPES))}. Known: {', '.join(sorted(TYPES))}."]
    if any(not _UUID.match(entity) for entity in entities):
        faults["entity"] = ["Not a lower-case UUID."]
    if faults:
        raise errors.BadRequest(errors=faults)
    return Wish(types, entities)


class Ring:
    """The latest events. Any number of threads (green ones, in the gateway) write and read."""

    def __init__(self, size: int, limit: int, heartbeat: float) -> None:
        self._news: collections.deque[News] = collections.deque(maxlen=size)
        self._last = 0
        self._more = threading.Condition()
        self._open, self._limit, self._heartbeat = 0, limit, heartbeat
        self._stopping = False
        self.boot = uuid.uuid4().hex[:12]  # numbers start again with every start of the gateway

    def add(self, event: Event, entity: dict[str, Any], at: float, user: str = "", request_id: str = "") -> None:
        """`at` in epoch seconds."""
        body = {"type": event.name, "source": event.service, "time": _iso(at), "user": user, "request_id": request_id}
        ids = frozenset(v for k, v in entity.items() if isinstance(v, str) and (k == "id" or k.endswith("_id")))
        self._put(event.name, body | {"entity": entity}, ids)

    def miss(self) -> None:
        """We were away from the bus: news may have passed."""
        self._put(GAP, gap("The gateway lost its connection to the bus."), frozenset())

    def stop(self) -> None:
        """End all streams."""
        with self._more:
            self._stopping = True
            self._more.notify_all()

    @property
    def streams(self) -> int:
        return self._open

    def listen(self, wanted: Wish, last_id: str | None) -> Iterator[bytes]:
        """One client's stream. Raises TooManyStreams, at once."""
        if self._open >= self._limit:
            raise errors.TooManyStreams(limit=self._limit)
        position, missed = self._resume(last_id)
        return self._stream(wanted, position, missed)

    def _put(self, kind: str, body: dict[str, Any], ids: frozenset[str]) -> None:
        text = json.dumps(body, separators=(",", ":"))
        with self._more:
            self._last += 1
            self._news.append(News(self._last, kind, text, ids))
            self._more.notify_all()

    def _resume(self, last_id: str | None) -> tuple[int, bool]:
        """The number of the last event that the client has, and whether some after it are lost."""
        if not last_id:
            return self._last, False
        boot, _, number = last_id.partition("-")
        if boot != self.boot or not re.match(r"[0-9]{1,15}\Z", number) or int(number) > self._last:
            return self._oldest() - 1, True
        return max(int(number), self._oldest() - 1), int(number) < self._oldest() - 1

    def _oldest(self) -> int:
        return self._news[0].number if self._news else self._last + 1

    def _stream(self, wanted: Wish, position: int, missed: bool) -> Iterator[bytes]:
        self._open += 1
        try:
            yield b": drystone events\nretry: 2000\n\n"
            if missed:
                yield _frame(f"{self.boot}-{position}", GAP, json.dumps(gap("Events were missed.")))
            while not self._stopping:
                if position + 1 < self._oldest():
                    return  # too slow: it comes back with Last-Event-ID and is told of the gap
                fresh = self._after(position)
                for news in fresh:
                    if wanted.takes(news):
                        yield _frame(f"{self.boot}-{news.number}", news.type, news.text)
                if fresh:
                    position = fresh[-1].number
                elif not self._wait(position):
                    yield b": still here\n\n"
        finally:
            self._open -= 1

    def _after(self, position: int, batch: int = 100) -> list[News]:
        start = position + 1 - self._oldest()
        return [self._news[i] for i in range(max(start, 0), min(start + batch, len(self._news)))]

    def _wait(self, position: int) -> bool:
        """True when there is something to do before the heartbeat is due."""
        with self._more:
            return self._more.wait_for(lambda: self._last > position or self._stopping, self._heartbeat)


def gap(why: str) -> dict[str, Any]:
    return {"type": GAP, "message": f"{why} Read the state again; events go on from here."}


def _frame(number: str, kind: str, text: str) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {text}\n\n".encode()


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
