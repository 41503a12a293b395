"""The list of a domain's disk snapshots on 100,000 rows beside the bare SQL of the same page and sums.

Both read the same database in turns, SQLite's and then PostgreSQL's: ours from the request as it comes off the bus to
the answer as it is put on it, checked by the promise, the plain side by sqlite3 or psycopg alone. What the
bus itself adds to any list is in the lines of `http`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg

from bench.lines import Line, Ratio, in_turns
from chassis.database import Database
from contracts import snapshots
from deploy.stack.postgres import Postgres
from services.snapshots import store_lists, tables

ROWS, ROUNDS, TIMES = 100_000, 7, 5
DOMAIN = str(uuid.UUID(int=1))
_SEEN = "sum(case when {0} = -1 then 0 else {0} end)"
_SUMS = f"select count(*), {_SEEN.format('size')}, {_SEEN.format('returns')} from overview where domain_id = ?"  # noqa: S608 - from constants
_PAGE = "select * from overview where domain_id = ?"
_BIG, _OLD = " and size >= ?", " and size >= ? and taken_at < ?"
_WORDS = ("description", "alias", "vm_name")
_TEXT = f" and ({' or '.join(f'lower({name}) like ?' for name in _WORDS)})"
SIZE = 2**29
_WANTED = {"min_size": SIZE, "taken_before": "2026-01-21T00:00:00Z"}


class Plain(Protocol):
    """A bare connection: sqlite3's, or psycopg's with its own mark for values."""

    def execute(self, query: Any, values: Any) -> Any: ...


@dataclass(frozen=True)
class Side:
    """One kind of database: ours, and a bare connection to the same rows."""

    name: str
    database: Database
    plain: Plain
    mark: str

    def ask(self, query: str, values: tuple[Any, ...]) -> None:
        self.plain.execute(query.replace("?", self.mark), values).fetchall()


def run() -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="drystone-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)  # PostgreSQL runs as nobody
        with _sqlite(Path(folder)) as side:
            found = _all(side)
        with _postgres(Path(folder)) as side:
            return found + _all(side)


@contextlib.contextmanager
def _sqlite(folder: Path) -> Iterator[Side]:
    path = folder / "snapshots.sqlite"
    database = Database(f"sqlite:///{path}")
    _fill(database)
    with contextlib.closing(sqlite3.connect(path)) as plain:
        yield Side("SQLite", database, plain, "?")


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[Side]:
    server = Postgres(folder / "postgres")
    try:
        server.start()
        database = Database(server.url())
        _fill(database)
        with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as plain:
            plain.execute("analyze")
            yield Side("PostgreSQL", database, plain, "%s")
    finally:
        server.end()


def _all(side: Side) -> list[Line]:
    old = datetime.datetime(2026, 1, 21, tzinfo=datetime.UTC)
    when = old.strftime("%Y-%m-%d %H:%M:%S") if side.mark == "?" else old
    return [
        _beside("first page / bare SQL", side, {}),
        _beside("the same, half filtered", side, {"min_size": SIZE}, _BIG, SIZE),
        _beside("the same, old and large", side, _WANTED, _OLD, SIZE, when),
        _beside("the same, with a text", side, {"text": "Night 77"}, _TEXT, *["%night 77%"] * len(_WORDS)),
        _beside("the same, by name of the VM", side, {"sort": "vm_name"}),
        _beside("the same, by description", side, {"sort": "-description"}),
    ]


def _beside(name: str, side: Side, wanted: dict[str, Any], *where: Any) -> Line:
    """`where`: what the plain SQL adds to its condition, and the values that it takes."""
    promise = snapshots.list_disk_snapshots
    body = {"id": DOMAIN, "sort": "-size", **wanted}
    more, values = "".join(where[:1]), (DOMAIN, *where[1:])
    column = tables.LONG.get(body["sort"].strip("-"), body["sort"].strip("-"))
    way = " desc" if body["sort"].startswith("-") else ""
    order = f" order by {column}{way}, volume_id{way} limit 101"

    def ours() -> None:
        with side.database.read() as session:
            answer = store_lists.page(session, promise.load_request(body))
        json.dumps(promise.load_reply(answer))  # which refuses an answer that breaks its promise

    def bare() -> None:
        side.ask(_PAGE + more + order, values)
        side.ask(_SUMS + more, values)

    line = Line(f"overview, {side.name}: {name}", "ms", wanted=Ratio(2))
    return in_turns(line, lambda: _timed(ours), lambda: _timed(bare), ROUNDS)


def _timed(ask: Any) -> float:
    begun = time.perf_counter()
    for _ in range(TIMES):
        ask()
    return (time.perf_counter() - begun) / TIMES * 1000


def _fill(database: Database) -> None:
    """Rows as a domain with 1,000 VMs has them."""
    with database.write() as session:
        tables.metadata.create_all(session.connection())
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    with database.write() as session:
        for first in range(0, ROWS, 10_000):
            session.execute(tables.overview.insert(), [_row(start, n) for n in range(first, first + 10_000)])


def _row(start: datetime.datetime, number: int) -> dict[str, Any]:
    vm = number % 1000
    return {
        "volume_id": str(uuid.uuid4()),
        "snapshot_id": str(uuid.uuid4()),
        "disk_id": str(uuid.UUID(int=vm)),
        "domain_id": DOMAIN,
        "vm_id": str(uuid.UUID(int=vm)),
        "vm_name": f"vm{vm}",
        "alias": f"disk{vm}",
        "description": f"night {number}",
        "taken_at": start + datetime.timedelta(minutes=number),
        "made_at": start + datetime.timedelta(minutes=number - 1440),
        "size": number * 7919 % 2**30,
        "returns": number * 104729 % 2**30,
        "depth": number // 1000,
        "layers": ROWS // 1000 + 1,
        "state": "ok",
        "reason": None if number % 10 else "It is being taken.",
        "description_start": f"night {number}",
        "reason_start": "" if number % 10 else "It is being taken.",
    }
