"""One service's database: SQLite by default, PostgreSQL by its address. Short transactions, clear errors.

    with database.write() as session: ...      # committed at the end, rolled back by an exception
    with database.read() as session: ...       # one consistent view; nothing is kept

Rules under eventlet (each was seen to hurt): a write transaction on SQLite never yields, so no RPC and no sleep
inside it; SQLite's own busy wait blocks the whole hub, so it is off and waiting is done here, in green time;
psycopg's binary implementation blocks the hub, so its Python one is used. A writer gives way after each transaction
(seen: 800 of them in a row, eight green threads, before anybody else ran once).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from chassis import logs
from chassis.clock import Clock, SystemClock
from contracts import errors

BUSY_LIMIT = 10.0  # seconds that a transaction on SQLite waits for other processes
_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_AWAY_CODES = _BUSY_CODES | {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_PROTOCOL,
}
# PostgreSQL's classes for: connection, shut-down, resources, operator's hand, system; and what a repeat cures.
_AWAY_STATES = ("08", "53", "57", "58", "40001", "40P01", "55P03", "25P03")
_log = logs.get("database")


class Database:
    """The database behind `url` (sqlite:///file or postgresql://...). `service` names it in errors.

    Every method reports a database that cannot be used as errors.DatabaseAway; it recovers by itself.
    """

    def __init__(self, url: str, clock: Clock | None = None, *, service: str = "this service", pool: int = 10) -> None:
        self.clock = clock or SystemClock()
        self.service = service
        self.url = address(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.yields = 0  # write transactions that were seen to yield; must stay 0
        self._lock = _WriteLock(self)
        if self.is_sqlite:
            self._readers = self._sqlite_engine("BEGIN", pool)
            self._writers = self._sqlite_engine("BEGIN IMMEDIATE", 1)
        else:
            self._writers = _postgres_engine(self.url, service, pool)
            self._readers = self._writers.execution_options(isolation_level="REPEATABLE READ")  # same pool

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session on one consistent view, taken now; it is rolled back at the end."""
        with self._reported(), Session(self._readers, expire_on_commit=False) as session:
            session.connection()
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose transaction has begun and commits at the end. Not to be nested."""
        turn = self._lock if self.is_sqlite else contextlib.nullcontext()
        with self._reported(), turn, Session(self._writers, expire_on_commit=False) as session:
            session.connection()  # begins now: on SQLite nothing that was read can be outdated at commit
            self._lock.begun = True
            yield session
            session.commit()
        if self.is_sqlite:
            time.sleep(0)  # nothing above yields: a loop of transactions would keep all others waiting

    def now(self, session: Session) -> datetime.datetime:
        """The database's time, which all instances of the service share; leases are measured by it.

        SQLite has no server: its processes share one machine, and that machine's clock is the database's.
        """
        if self.is_sqlite:
            return self.clock.now()
        moment: datetime.datetime = session.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        return moment.astimezone(datetime.UTC)

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._readers.dispose()
        self._writers.dispose()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as problem:
            reason = away_reason(problem)
            if reason is None:
                raise
            raise errors.DatabaseAway(service=self.service, reason=reason) from problem

    def _sqlite_engine(self, begin: str, size: int) -> sa.Engine:
        engine = sa.create_engine(
            self.url,
            # isolation_level None: Python's own hidden BEGIN is off, the listener below begins
            connect_args={"timeout": 0, "isolation_level": None, "check_same_thread": False},
            poolclass=sa.pool.QueuePool,
            pool_size=size,
            max_overflow=0,
            pool_timeout=BUSY_LIMIT,
        )

        # if the folder cannot be made, opening the file fails with a better sentence than this would
        with contextlib.suppress(OSError):
            pathlib.Path(str(self.url.database)).parent.mkdir(parents=True, exist_ok=True)

        def prepare(connection: Any, _record: Any) -> None:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 0"):
                self._patiently(connection, f"PRAGMA {pragma}")

        def start(connection: sa.Connection) -> None:
            raw: Any = connection.connection.dbapi_connection
            self._patiently(raw, begin)
            if begin == "BEGIN":
                self._patiently(raw, "SELECT 1 FROM sqlite_schema LIMIT 1")  # takes the view of the data now

        event.listen(engine, "connect", prepare)
        event.listen(engine, "begin", start)
        return engine

    def _patiently(self, raw: sqlite3.Connection, sql: str) -> None:
        """Run it, waiting in green time while another process holds the file."""
        deadline = self.clock.monotonic() + BUSY_LIMIT
        while True:
            try:
                raw.execute(sql).close()
                return
            except sqlite3.OperationalError as problem:
                if _code(problem) not in _BUSY_CODES or self.clock.monotonic() > deadline:
                    raise
            # spread out, or two processes in step would starve a third
            self.clock.sleep(random.uniform(0.001, 0.02))  # noqa: S311


class _WriteLock:
    """One writer at a time within this process, and a watch over the rule that writers do not yield.

    Under eventlet all green threads share one native thread: one that finds this lock taken after the holder's
    transaction has begun proves that the holder yielded inside it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._holder = (0, 0)
        self.begun = False

    def __enter__(self) -> None:
        me = (threading.get_native_id(), threading.get_ident())
        if not self._lock.acquire(blocking=False):
            if self._holder == me:
                raise RuntimeError("write() inside write(): pass the session on")
            if self.begun and self._holder[0] == me[0]:
                self._database.yields += 1
                _log.warning("a write transaction yielded", seen_by=me[1], holder=self._holder[1])
            if not self._lock.acquire(timeout=BUSY_LIMIT):
                raise errors.DatabaseAway(service=self._database.service, reason="another writer does not end")
        self._holder = me

    def __exit__(self, *_: object) -> None:
        self.begun = False
        self._holder = (0, 0)
        self._lock.release()


def address(url: str) -> sa.URL:
    """The address that SQLAlchemy takes. Raises ValueError for anything but a SQLite file or PostgreSQL."""
    try:
        made = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ValueError("a database is sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME") from None
    if made.get_backend_name() in ("postgresql", "postgres"):
        return made.set(drivername="postgresql+psycopg")
    if made.get_backend_name() != "sqlite" or made.database in (None, "", ":memory:"):
        raise ValueError("a database is sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")
    return made


def _postgres_engine(url: sa.URL, service: str, pool: int) -> sa.Engine:
    os.environ["PSYCOPG_IMPL"] = "python"  # read when SQLAlchemy imports psycopg, in the next line
    return sa.create_engine(
        url,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=BUSY_LIMIT,
        pool_pre_ping=True,  # a connection that died while idle is replaced unseen
        connect_args={
            "connect_timeout": 5,
            "application_name": f"drystone {service}",
            # every wait has an end: for locks, for a statement, and for a client that froze in a transaction
            "options": "-c lock_timeout=10s -c statement_timeout=30s -c idle_in_transaction_session_timeout=60s"
            " -c timezone=UTC",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        },
    )


def after_commit(session: Session, do: Callable[[], object]) -> None:
    """Run `do` once this session's transaction is committed; never if it is rolled back."""
    event.listen(session, "after_commit", lambda _session: do(), once=True)


def _code(problem: BaseException | None) -> int | None:
    """SQLite's primary error code."""
    code = getattr(problem, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def away_reason(problem: BaseException) -> str | None:
    """What to tell a person if this error means that the database cannot be used now, else None."""
    if isinstance(problem, sa.exc.TimeoutError):
        return "all connections are in use"
    cause = problem.orig if isinstance(problem, sa.exc.DBAPIError) else problem
    text = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    if _code(cause) in _AWAY_CODES:
        return text
    if isinstance(problem, sa.exc.DBAPIError) and type(cause).__module__.startswith("psycopg"):
        state = getattr(cause, "sqlstate", None)
        lost = problem.connection_invalidated or isinstance(problem, sa.exc.InterfaceError)
        lost = lost or (state is None and isinstance(problem, sa.exc.OperationalError))
        if lost or (state or "").startswith(_AWAY_STATES):
            return text
    return None
