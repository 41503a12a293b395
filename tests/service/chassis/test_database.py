"""Transactions on both databases: together, apart, stalled, away and back."""

from __future__ import annotations

import contextlib
import datetime
import json
import pathlib
import sqlite3
import subprocess
import sys
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from chassis.clock import FakeClock
from chassis.database import Database, after_commit
from chassis.tables import UtcTime
from contracts import errors
from tests.fakes.databases import Opened, Postgres

ROOT = pathlib.Path(__file__).resolve().parents[3]
metadata = sa.MetaData()
counter = sa.Table("counter", metadata, sa.Column("value", sa.Integer))
line = sa.Table(
    "line",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("writer", sa.Integer),
    sa.Column("at", UtcTime),
)


@pytest.fixture
def counting(database: Database) -> Database:
    with database.write() as session:
        metadata.create_all(session.connection())
        session.execute(sa.insert(counter).values(value=0))
    return database


def writers(url: str, mode: str, threads: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fakes.writers", url, mode, str(threads), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def value(database: Database) -> int:
    with database.read() as session:
        return int(session.execute(sa.select(counter.c.value)).scalar_one())


def test_a_transaction_commits_at_its_end_and_is_rolled_back_by_an_exception(counting: Database) -> None:
    with counting.write() as session:
        session.execute(sa.update(counter).values(value=1))
    with contextlib.suppress(ZeroDivisionError), counting.write() as session:
        session.execute(sa.update(counter).values(value=2))
        raise ZeroDivisionError
    assert value(counting) == 1


def test_a_reader_keeps_nothing(counting: Database) -> None:
    with counting.read() as session:
        session.execute(sa.update(counter).values(value=7))
    assert value(counting) == 0


def test_a_reader_sees_one_moment(counting: Database) -> None:
    with counting.read() as session:
        assert session.execute(sa.select(counter.c.value)).scalar_one() == 0
        with counting.write() as writer:
            writer.execute(sa.update(counter).values(value=1))
        assert session.execute(sa.select(counter.c.value)).scalar_one() == 0
    assert value(counting) == 1


def test_what_waits_for_the_commit_runs_after_it_only(counting: Database) -> None:
    seen: list[int] = []
    with counting.write() as session:
        session.execute(sa.update(counter).values(value=3))
        after_commit(session, lambda: seen.append(value(counting)))
        assert seen == []
    with contextlib.suppress(ZeroDivisionError), counting.write() as session:
        after_commit(session, lambda: seen.append(-1))
        raise ZeroDivisionError
    assert seen == [3]


def test_times_come_back_as_they_went_in(counting: Database) -> None:
    moment = datetime.datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    with counting.write() as session:
        session.execute(sa.insert(line).values(at=moment))
        session.execute(sa.insert(line).values(at=None))
    with counting.read() as session:
        found = list(session.scalars(sa.select(line.c.at).order_by(line.c.id)))
    assert found == [moment, None]
    assert found[0].tzinfo is datetime.UTC
    with pytest.raises(sa.exc.StatementError, match="without a zone"), counting.write() as session:
        session.execute(sa.insert(line).values(at=datetime.datetime(2026, 1, 1)))  # noqa: DTZ001


def test_green_writers_of_two_processes_lose_nothing_and_nobody_fails(url: str, counting: Database) -> None:
    both = [writers(url, "write", 8, 25) for _ in range(2)]
    for process in both:
        result(process)
    assert value(counting) == 2 * 8 * 25


def test_green_writers_keep_nobody_waiting_for_more_than_one_transaction_each(url: str, counting: Database) -> None:
    found = result(writers(url, "write", 8, 25))
    assert found["written"] == value(counting) == 8 * 25
    assert found["between"] <= 8  # 200 where a writer does not give way after its transaction
    assert found["turns"] >= 25


def test_a_write_transaction_that_does_not_yield_is_not_accused(url: str, counting: Database) -> None:
    if counting.is_sqlite:
        assert result(writers(url, "write", 8, 10))["yields"] == 0


def test_a_write_transaction_that_yields_is_found(url: str, counting: Database) -> None:
    if counting.is_sqlite:
        assert result(writers(url, "yield", 3, 3))["yields"] > 0
        assert value(counting) == 9


def test_another_process_that_holds_the_file_is_waited_for_in_green_time(url: str, counting: Database) -> None:
    if not counting.is_sqlite:
        return
    holder = sqlite3.connect(str(counting.url.database), isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    process = writers(url, "write", 8, 1)
    assert process.stdout.readline() == "ticking\n"  # SQLite's own wait would stand still for 5 s, then fail
    holder.execute("COMMIT")
    holder.close()
    result(process)
    assert value(counting) == 8


def test_long_queries_of_green_threads_run_at_the_same_time(postgres: Postgres) -> None:
    found = result(writers(postgres.fresh(), "wait", 4, 1))
    assert found["most"] == 4  # with psycopg's binary implementation 1: it blocks the hub
    assert found["ticks"] > 10


def test_write_inside_write_is_refused(opened: Opened, tmp_path: pathlib.Path) -> None:
    database = opened(f"sqlite:///{tmp_path}/a.sqlite")
    with database.write(), pytest.raises(RuntimeError, match="pass the session on"), database.write():
        pass
    with database.write():
        pass


def test_sqlite_survives_power_loss_and_minds_references(opened: Opened, tmp_path: pathlib.Path) -> None:
    database = opened(f"sqlite:///{tmp_path}/new/folder/a.sqlite")
    for pragma, wanted in {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 0}.items():
        with database.write() as session:
            assert session.execute(sa.text(f"PRAGMA {pragma}")).scalar_one() == wanted


def test_a_file_that_another_process_never_gives_back_is_away(opened: Opened, tmp_path: pathlib.Path) -> None:
    database = opened(f"sqlite:///{tmp_path}/a.sqlite", FakeClock(), service="inventory")
    with database.write():
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.DatabaseAway, match="inventory does not answer: database is locked"):
            database.write().__enter__()
        with database.read():  # readers need not wait for it
            pass
    with database.write():
        pass


def test_a_file_that_is_no_database_is_away(opened: Opened, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.sqlite").write_text("this is a letter to my aunt" * 100)
    with pytest.raises(errors.DatabaseAway, match="not a database"), opened(f"sqlite:///{tmp_path}/a.sqlite").read():
        pass
    with (
        pytest.raises(errors.DatabaseAway, match="unable to open"),
        opened(f"sqlite:///{tmp_path}/a.sqlite/b/c").read(),
    ):
        pass


def test_mistakes_are_not_called_away(database: Database) -> None:
    with pytest.raises(sa.exc.SQLAlchemyError), database.read() as session:
        session.execute(sa.text("SELECT * FROM nowhere"))


@pytest.mark.parametrize("wrong", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://h/d"])
def test_other_addresses_are_refused(opened: Opened, wrong: str) -> None:
    with pytest.raises(ValueError, match="a database is sqlite:///FILE or postgresql://"):
        opened(wrong)


def test_a_server_that_was_killed_is_away_and_comes_back(opened: Opened, postgres: Postgres) -> None:
    database = opened(postgres.fresh(), service="snapshots")
    with database.read():
        pass
    try:
        with pytest.raises(errors.DatabaseAway), database.write() as session:  # noqa: PT012  # while it is in use
            postgres.kill()
            session.execute(sa.text("SELECT 1"))
        with pytest.raises(errors.DatabaseAway, match="snapshots"), database.read():
            pass
    finally:
        postgres.start()
    with database.write() as session:
        assert session.execute(sa.text("SELECT 1")).scalar_one() == 1


def test_a_wrong_user_or_name_is_away_with_the_servers_reason(opened: Opened, postgres: Postgres) -> None:
    with pytest.raises(errors.DatabaseAway, match="does not exist"), opened(postgres.url("nowhere")).read():
        pass


def test_a_deadlock_may_be_repeated(opened: Opened, postgres: Postgres) -> None:
    database = opened(postgres.fresh())
    with database.write() as session:
        session.execute(sa.text("CREATE TABLE pair AS SELECT 1 AS id UNION SELECT 2"))
    meet = threading.Barrier(2)
    ends: list[str] = []

    def lock(first: int, second: int) -> None:
        try:
            with database.write() as session:
                session.execute(sa.text("SELECT * FROM pair WHERE id = :id FOR UPDATE"), {"id": first})
                meet.wait(60)
                session.execute(sa.text("SELECT * FROM pair WHERE id = :id FOR UPDATE"), {"id": second})
            ends.append("done")
        except errors.DatabaseAway as problem:
            ends.append(str(problem.fields["reason"]))

    threads = [threading.Thread(target=lock, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ends) == ["deadlock detected", "done"]


def test_too_few_connections_end_in_a_clear_error(
    opened: Opened, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.database.BUSY_LIMIT", 0.2)
    database = opened(postgres.fresh(), pool=1)
    with database.read() as session:
        session.connection()
        with pytest.raises(errors.DatabaseAway, match="all connections are in use"), database.write():
            pass


def test_the_databases_time_is_used(opened: Opened, postgres: Postgres, tmp_path: pathlib.Path) -> None:
    clock = FakeClock()
    for address in (postgres.fresh(), f"sqlite:///{tmp_path}/a.sqlite"):
        database = opened(address, clock)
        with database.read() as session:
            assert database.now(session).tzinfo is datetime.UTC
            assert (database.now(session) == clock.now()) is database.is_sqlite
