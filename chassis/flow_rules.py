"""What a move writes: frozen facts in, (sentence, columns) out. No I/O."""

from __future__ import annotations

from typing import Any

from chassis.flow import DONE, RUNNING, STUCK, UNDOING, UNDONE, FlowKind, FlowRow
from contracts import errors

Decision = tuple[str, dict[str, Any]]


def settle(kind: FlowKind, row: FlowRow) -> Decision:
    """The present step holds: on to the next, or done."""
    following = kind.after(row.step)
    past = row.past or kind.step(row.step).no_way_back
    if following is None:
        return "done", {"state": DONE, "past": past, "reason": None, "action": None}
    late = row.cancel_by is not None and past and not row.past
    sentence = f"{row.step} is settled, next is {following.name}" + " (too late to cancel)" * late
    return sentence, {"step": following.name, "asks": 0, "past": past}


def turn_back(kind: FlowKind, row: FlowRow, problem: errors.Problem) -> Decision:
    """Begin to undo: the present step only if it was ever asked for, then all before it."""
    first = kind.step(row.step) if row.asks else kind.before(row.step)
    reason = problem.to_wire()
    if first is None:
        return f"ends undone: {problem}", {"state": UNDONE, "reason": reason}
    columns = {"state": UNDOING, "undoing": True, "step": first.name, "reason": reason}
    return f"turns back at {row.step}: {problem}", columns


def step_back(kind: FlowKind, row: FlowRow) -> Decision:
    """The present step is undone: on to the one before, or the end."""
    previous = kind.before(row.step)
    if previous is None:
        return "ends undone", {"state": UNDONE}
    return f"{row.step} is undone, next is {previous.name}", {"step": previous.name, "asks": 0}


def go_on(why: str) -> Decision:
    """Undoing has met something that happened for good: only forward is left."""
    columns = {"state": RUNNING, "undoing": False, "past": True, "reason": None, "cancel_by": None}
    return f"cannot turn back: {why}", columns


def stick(row: FlowRow, problem: errors.Problem, action: str) -> Decision:
    """Stop until a person resumes it; what it was undoing for is kept beside the new reason."""
    reason = problem.to_wire()
    if row.undoing and row.reason:
        reason["first"] = row.reason
    action = f"{action or problem.advice or 'Remove the reason.'} Then: drystone job resume {row.id}"
    return f"needs a person at {row.step}: {problem}", {"state": STUCK, "reason": reason, "action": action}
