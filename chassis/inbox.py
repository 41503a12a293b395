"""Every message is handled once in effect: its id is kept in the transaction of what its handler writes."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from chassis.tables import inbox


def once(session: Session, message_id: str, handler: Callable[[], object]) -> bool:
    """Run `handler` unless this message was handled before; False when it was.

    Both run in the caller's transaction: if that is rolled back, the message counts as not handled. Of two
    instances with the same message the second waits for the first one's commit (PostgreSQL) or turn (SQLite).
    """
    if not _remember(session, message_id):
        return False
    handler()
    return True


def _remember(session: Session, message_id: str) -> bool:
    dialect = session.get_bind().dialect.name
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    row = insert(inbox).values(message_id=message_id, heard_at=datetime.datetime.now(datetime.UTC))
    # RETURNING, because PostgreSQL's row count is not known here (-1)
    new = session.execute(row.on_conflict_do_nothing().returning(inbox.c.message_id)).first()
    return new is not None
