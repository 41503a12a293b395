"""Reading heartbeats: which one is news, and how far a host's clock is off. Pure.

Heartbeats are delivered at least once and may come late or out of order. Within one run of an agent `sequence`
counts up. Between two runs clocks cannot be trusted (they may be set back), so the agent ids that were replaced
are remembered and their beats are dropped.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

_REMEMBERED = 16  # replaced agents; an agent that restarts more often within one delivery delay has other troubles


@dataclass(frozen=True)
class Pulse:
    """What is kept of a host's heartbeats. `offset`: seconds its clock is ahead of ours, null before the first."""

    agent_id: str | None = None
    sequence: int = -1
    replaced: tuple[str, ...] = ()
    offset: float | None = None


def hear(pulse: Pulse, agent_id: str, sequence: int, clock: dt.datetime, now: dt.datetime) -> Pulse | None:
    """The pulse after this beat, or None when the beat is older than what was heard already."""
    measured = (clock - now).total_seconds()
    if agent_id == pulse.agent_id:
        if sequence <= pulse.sequence:
            return None
        return replace(pulse, sequence=sequence, offset=steady(pulse.offset, measured))
    if agent_id in pulse.replaced:
        return None
    replaced = pulse.replaced if pulse.agent_id is None else (*pulse.replaced, pulse.agent_id)[-_REMEMBERED:]
    return Pulse(agent_id, sequence, replaced, measured)


def steady(before: float | None, measured: float) -> float:
    """The clock offset after one more measurement, in seconds.

    A beat that waited in a queue makes the host's clock look late, never early: what is higher is nearer to the
    truth and is taken at once, what is lower is approached by halves (a clock that was really set back is right
    after a few beats).
    """
    if before is None or measured >= before:
        return measured
    return before + (measured - before) / 2


def sent_at(clock: dt.datetime, offset: float | None) -> dt.datetime:
    """When a report was sent, on our clock."""
    return clock - dt.timedelta(seconds=offset or 0.0)
