"""News leave with the commit: told in the transaction of the change, published in order afterwards.

    with database.write() as session:
        store.rename(session, vm)
        outbox.tell(session, vm_changed, payload)

A row is deleted when the broker has confirmed it. A crash in between publishes it twice under the same message id;
consumers keep an inbox. Order is kept per process: with several instances of a service every one publishes what it
told itself, and takes over rows that a dead one has left.
"""

from __future__ import annotations

import datetime
import os
import socket
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy.orm import Session

from chassis import bus_wire as wire
from chassis import context, logs
from chassis.database import Database
from chassis.tables import inbox, outbox
from contracts import errors
from contracts.promise import Event

POLL = 5.0  # seconds between two looks for rows that nobody announced (another process's, or left by a crash)
LEFT_BEHIND = 5.0  # seconds after which another process's rows are taken for left behind
BATCH = 200  # rows per round; their confirms are awaited together
BACKOFF = (0.5, 1.0, 2.0, 5.0)  # seconds between attempts while the broker is away
INBOX_DAYS = 7  # a message does not come back later than this
TIDY = 3600.0  # seconds between two cleanings of the inbox
_FLAG = "drystone_outbox"
_log = logs.get("outbox")


class Wake(Protocol):
    """`bus.Signal`, or a threading.Event."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


def writer() -> str:
    """This process, as it appears in the rows that it told."""
    return f"{socket.gethostname()}:{os.getpid()}"


def tell(session: Session, event: Event, payload: dict[str, Any], key: str | None = None) -> str:
    """Tell news with this transaction; answers the message id. Raises BadRequest if it breaks the promise's schema."""
    event.load(payload)
    call = context.current()
    message_id = uuid.uuid4().hex
    session.execute(
        outbox.insert().values(
            message_id=message_id,
            exchange=wire.events_exchange(event.service),
            routing_key=wire.event_key(event, key),
            headers=wire.to_headers(context.Call(call.request_id, call.flow_id, call.user)),
            body=payload,
            writer=writer(),
            told_at=datetime.datetime.now(datetime.UTC),
        )
    )
    session.info[_FLAG] = True
    return message_id


class Publisher:
    """Brings the outbox to the broker. `send(rows)` publishes all in order or raises; it is the bus's."""

    def __init__(self, database: Database, send: Callable[[list[Any]], None], wake: Wake) -> None:
        self._database, self._send, self._wake = database, send, wake
        self._failures = 0
        self._tidied = 0.0
        self._stopping = False
        sa_event.listen(Session, "after_commit", self._committed)

    def stop(self) -> None:
        self._stopping = True
        sa_event.remove(Session, "after_commit", self._committed)
        self._wake.set()

    def loop(self) -> None:
        """Publish for ever; runs in a green thread of its own. Never raises."""
        while not self._stopping:
            self._wake.clear()
            try:
                while self.publish_some():
                    pass
                self._tidy()
                self._recovered()
                pause = POLL
            except Exception as fault:
                pause = self._failed(fault)
            self._pause(pause)

    def publish_some(self) -> int:
        """One round: how many rows were published and deleted. Raises what the broker or the database raises."""
        rows = self._due()
        if rows:
            self._send(rows)
            with self._database.write() as session:
                session.execute(outbox.delete().where(outbox.c.id.in_([row.id for row in rows])))
        return len(rows)

    def age(self) -> float:
        """Seconds that the oldest row has waited; 0 when none waits."""
        with self._database.read() as session:
            oldest = session.execute(sa.select(sa.func.min(outbox.c.told_at))).scalar_one()
        if oldest is None:
            return 0.0
        waited: datetime.timedelta = datetime.datetime.now(datetime.UTC) - oldest
        return max(0.0, waited.total_seconds())

    def _pause(self, seconds: float) -> None:
        if not self._failures:
            self._wake.wait(seconds)
            return
        # while the broker is away new rows must not hurry us
        self._database.clock.sleep(seconds)

    def _due(self) -> list[Any]:
        old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=LEFT_BEHIND)
        ours = sa.or_(outbox.c.writer == writer(), outbox.c.told_at < old)
        with self._database.read() as session:
            return list(session.execute(sa.select(outbox).where(ours).order_by(outbox.c.id).limit(BATCH)))

    def _committed(self, session: Session) -> None:
        if session.info.pop(_FLAG, False):
            self._wake.set()

    def _failed(self, fault: Exception) -> float:
        if self._failures == 0:
            if isinstance(fault, errors.Problem | OSError) or type(fault).__name__ in ("Away", "Unconfirmed"):
                _log.warning("news wait: they cannot be published now", reason=str(fault))
            else:
                _log.exception("news wait: publishing failed")
        pause = BACKOFF[min(self._failures, len(BACKOFF) - 1)]
        self._failures += 1
        return pause

    def _recovered(self) -> None:
        if self._failures:
            _log.info("news are published again")
        self._failures = 0

    def _tidy(self) -> None:
        now = self._database.clock.monotonic()
        if self._tidied and now - self._tidied < TIDY:
            return
        self._tidied = now
        old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=INBOX_DAYS)
        with self._database.write() as session:
            session.execute(inbox.delete().where(inbox.c.heard_at < old))
