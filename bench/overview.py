"""The list of a domain's disk snapshots on 100,000 rows beside the bare SQL of the same page and sums.

Both read the same SQLite file in turns: ours from the request to the answer as the service gives it to the bus, the
plain side by sqlite3 alone. What the bus and the contract add to any list is in the lines of `http`.
"""

from __future__ import annotations

import datetime
import sqlite3
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from bench.lines import Line, in_turns
from chassis.database import Database
from contracts import snapshots
from services.snapshots import store_overview, tables

ROWS, ROUNDS, TIMES = 100_000, 7, 5
DOMAIN = str(uuid.UUID(int=1))
_SEEN = "sum(case when {0} = -1 then 0 else {0} end)"
_SUMS = f"select count(*), {_SEEN.format('size')}, {_SEEN.format('returns')} from overview where domain_id = ?"  # noqa: S608 - from constants
_PAGE = "select * from overview where domain_id = ?"
_ORDER = " order by size desc, volume_id desc limit 101"
_BIG, _OLD = " and size >= ?", " and size >= ? and taken_at < ?"
SIZE = 2**29
_WANTED = {"min_size": SIZE, "taken_before": "2026-01-21T00:00:00Z"}


def run() -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="drystone-bench-", dir="/var/tmp") as folder:
        path = Path(folder) / "snapshots.sqlite"
        database = Database(f"sqlite:///{path}")
        _fill(database)
        plain = sqlite3.connect(path)
        try:
            return [
                _beside("overview: first page by size / bare SQL", database, plain, {}),
                _beside("overview: the same, half filtered", database, plain, {"min_size": SIZE}, _BIG, SIZE),
                _beside(
                    "overview: the same, old and large", database, plain, _WANTED, _OLD, SIZE, "2026-01-21 00:00:00"
                ),
            ]
        finally:
            plain.close()


def _beside(name: str, database: Database, plain: sqlite3.Connection, wanted: dict[str, Any], *where: Any) -> Line:
    """`where`: what the plain SQL adds to its condition, and the value that it takes."""
    promise = snapshots.list_disk_snapshots
    request = promise.load_request({"id": DOMAIN, "sort": "-size", **wanted})
    more, values = "".join(where[:1]), (DOMAIN, *where[1:])

    def ours() -> None:
        with database.read() as session:
            store_overview.page(session, request)

    def bare() -> None:
        plain.execute(_PAGE + more + _ORDER, values).fetchall()
        plain.execute(_SUMS + more, values).fetchall()

    return in_turns(Line(name, "ms", wanted="< 2"), lambda: _timed(ours), lambda: _timed(bare), ROUNDS)


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
        "size": number * 7919 % 2**30,
        "returns": number * 104729 % 2**30,
        "depth": number // 1000,
        "layers": ROWS // 1000 + 1,
        "state": "ok",
        "reason": None if number % 10 else "It is being taken.",
    }
