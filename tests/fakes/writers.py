"""A process with green threads that write into one database, and a ticker that shows that the hub goes on.

`python -m tests.fakes.writers URL MODE THREADS ROUNDS` prints "ticking" once the ticker ran 100 times beside the work,
and at the end one JSON line: the ticks, how many long queries ran at the same time at most, how many write
transactions were seen to yield, and how many of them ended at most between two turns of a thread that is always ready
to run (`between`; it is counted, not timed, so that a slow machine does not matter).
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
    seen = {"ticks": 0, "now": 0, "most": 0, "written": 0, "turns": 0, "between": 0}
    ready = [eventlet.spawn(_take_turns, seen)] if mode == "write" else []
    work = {"write": _write, "yield": _write_and_yield, "wait": _wait}[mode]
    pool = [eventlet.spawn(work, database, number, rounds, seen) for number in range(threads)]
    ready.append(eventlet.spawn(_tick, seen))
    for thread in pool:
        thread.wait()
    for thread in ready:
        thread.kill()
    return {**seen, "yields": database.yields}


def _tick(seen: dict[str, int]) -> None:
    while True:
        time.sleep(0.005)
        seen["ticks"] += 1
        if seen["ticks"] == 100:
            print("ticking", flush=True)


def _take_turns(seen: dict[str, int]) -> None:
    while True:
        before = seen["written"]
        time.sleep(0)
        seen["turns"] += 1
        seen["between"] = max(seen["between"], seen["written"] - before)


def _write(database: Database, number: int, rounds: int, seen: dict[str, int]) -> None:
    for _ in range(rounds):
        with database.write() as session:
            session.execute(sa.text("UPDATE counter SET value = value + 1"))
            session.execute(sa.text("INSERT INTO line (writer) VALUES (:writer)"), {"writer": number})
        seen["written"] += 1
        with database.read() as session:
            session.execute(sa.text("SELECT count(*) FROM line")).scalar_one()


def _write_and_yield(database: Database, number: int, rounds: int, seen: dict[str, int]) -> None:
    for _ in range(rounds):
        with database.write() as session:
            session.execute(sa.text("UPDATE counter SET value = value + 1"))
            time.sleep(0.02)  # what must never be done


def _wait(database: Database, number: int, rounds: int, seen: dict[str, int]) -> None:
    """PostgreSQL only: a long query."""
    for _ in range(rounds):
        with database.read() as session:
            session.execute(sa.text("SELECT 1"))  # from here on it is connected
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
            session.execute(sa.text("SELECT pg_sleep(1)"))
            seen["now"] -= 1


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
