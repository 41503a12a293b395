"""What doors do to flows from outside, in their own transaction: begin, cancel, put back to work."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from chassis import context, flow
from chassis.database import Database
from chassis.flow import DONE, RUNNING, STUCK, UNDOING, UNDONE, FlowKind, FlowRow
from chassis.tables import flows
from contracts import errors


def begin(
    session: Session, database: Database, kind: FlowKind, flow_id: str, *, subject: str, data: dict[str, Any], body: Any
) -> tuple[FlowRow, bool]:
    """The flow, and whether it is new. Raises IdempotencyConflict when the id was used for another body or user."""
    hashed, user = _hash(kind.name, subject, body), context.current().user
    first = {"subject": subject, "data": data, "body_hash": hashed, "user": user}
    new = _insert(session, database, {"id": flow_id, "kind": kind.name, "step": kind.steps[0].name, **first})
    row = flow.get(session, flow_id)
    if (row.body_hash, row.user) != (hashed, user):
        raise errors.IdempotencyConflict(id=flow_id)
    if new:
        flow.announce(session, kind, row, "", f"starts with {row.step}")
    return row, new


def _insert(session: Session, database: Database, first: dict[str, Any]) -> bool:
    now = database.now(session)
    values = {
        **first,
        "request_id": context.current().request_id,
        "state": RUNNING,
        **dict.fromkeys(("past", "undoing"), False),
        **dict.fromkeys(("asks", "claim", "wakes"), 0),
        **dict.fromkeys(("created_at", "updated_at"), now),
        "version": 1,
    }
    insert = sqlite.insert if database.is_sqlite else postgresql.insert
    query = insert(flows).values(values).on_conflict_do_nothing().returning(flows.c.id)
    return session.execute(query).first() is not None


def cancel(session: Session, database: Database, kinds: dict[str, FlowKind], flow_id: str) -> FlowRow:
    """Note that the flow shall turn back; its owner does it. Raises NotFound and TooLate."""
    row = flow.get(session, flow_id, lock=True)
    if row.undoing or row.state == UNDONE:
        return row
    if row.past or row.state == DONE:
        raise errors.TooLate(flow_id=flow_id)
    user = row.cancel_by or context.current().user or "unknown"
    if row.state == STUCK:
        changes = {"state": RUNNING, "reason": None, "action": None, "cancel_by": user}
        return _put_back(session, database, kinds, row, sentence=f"cancelled by {user}", **changes)
    if row.cancel_by is not None:
        return row
    # the owner, wherever it is, hears of it like of a wake
    row = flow.store(session, database, row, cancel_by=user, wakes=row.wakes + 1)
    flow.say(session, row, f"{user} asks to cancel it")
    return row


def resume(session: Session, database: Database, kinds: dict[str, FlowKind], flow_id: str) -> FlowRow:
    """A stuck flow works again, where and in the direction in which it stopped. Raises NotFound, FlowWrongState."""
    row = flow.get(session, flow_id, lock=True)
    if row.active:
        return row
    if row.state != STUCK:
        raise errors.FlowWrongState(flow_id=flow_id, state=row.state, action="resume", needs=STUCK)
    state = UNDOING if row.undoing else RUNNING
    changes = {"state": state, "reason": (row.reason or {}).get("first"), "action": None}
    return _put_back(session, database, kinds, row, sentence="resumed", **changes)


def _put_back(
    session: Session, database: Database, kinds: dict[str, FlowKind], row: FlowRow, **changes: Any
) -> FlowRow:
    """That a step was asked for stays known, so that it is also undone; its tries begin anew."""
    return flow.move(session, database, kinds[row.kind], row, asks=min(row.asks, 1), **changes)


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
