"""A process with green threads that write into one database, and a ticker that shows how long the hub stood still.

`python -m tests.fakes.writers URL MODE THREADS ROUNDS` prints one JSON line: the longest gap between two ticks, the
whole time (both in seconds), and how many write transactions were seen to yield.
"""

# ruff: noqa: E402
import eventlet

eventlet.monkey_patch()

import json
import sys
import time
from typing import Any

import sqlalchemy as sa

from chassis import logs
from chassis.database import Database

logs.setup("writers")


def main(url: str, mode: str, threads: int, rounds: int) -> dict[str, Any]:
    database = Database(url)
    gaps = [0.0]
    ticker = eventlet.spawn(_tick, gaps)
    started = time.monotonic()
    work = {"write": _write, "yield": _write_and_yield, "wait": _wait}[mode]
    pool = [eventlet.spawn(work, database, number, rounds) for number in range(threads)]
    for thread in pool:
        thread.wait()
    seconds = time.monotonic() - started
    ticker.kill()
    return {"gap": max(gaps), "seconds": seconds, "yields": database.yields}


def _tick(gaps: list[float]) -> None:
    last = time.monotonic()
    while True:
        time.sleep(0.005)
        now = time.monotonic()
        gaps.append(now - last)
        last = now


def _write(database: Database, number: int, rounds: int) -> None:
    for _ in range(rounds):
        with database.write() as session:
            session.execute(sa.text("UPDATE counter SET value = value + 1"))
            session.execute(sa.text("INSERT INTO line (writer) VALUES (:writer)"), {"writer": number})
        with database.read() as session:
            session.execute(sa.text("SELECT count(*) FROM line")).scalar_one()


def _write_and_yield(database: Database, number: int, rounds: int) -> None:
    for _ in range(rounds):
        with database.write() as session:
            session.execute(sa.text("UPDATE counter SET value = value + 1"))
            time.sleep(0.02)  # what must never be done


def _wait(database: Database, number: int, rounds: int) -> None:
    """PostgreSQL only: a long query."""
    for _ in range(rounds):
        with database.read() as session:
            session.execute(sa.text("SELECT pg_sleep(1)"))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
