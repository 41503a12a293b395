"""Reading heartbeats: which one is news, and how far a host's clock is off. Pure.

Heartbeats are delivered at least once and may come late or out of order. Within one run of an agent `sequence`
counts up. Between two runs clocks cannot be trusted (they may be set back), so the agent ids that were replaced
are remembered and their beats are dropped.

A beat that waited in a queue makes the host's clock look late, never early. So the clock's offset is the highest
that was measured lately: what is higher is nearer to the truth and taken at once, what is lower only after
everything was lower for PROOF. (Seen: without that, each restart of this service or a busy broker brought ClockOff.)
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

PROOF = dt.timedelta(seconds=30)
FIRST_DELAY = 10.0  # seconds that the first beat of a run may have waited before its clock counts as wrong
_REMEMBERED = 16  # replaced agents; an agent that restarts more often within one delivery delay has other troubles


@dataclass(frozen=True)
class Pulse:
    """What is kept of a host's heartbeats. `offset`: seconds its clock is ahead of ours, null before the first.
    `lower_since`: since when only lower offsets were measured, the highest of them being `lower_best`."""

    agent_id: str | None = None
    sequence: int = -1
    replaced: tuple[str, ...] = ()
    offset: float | None = None
    lower_since: dt.datetime | None = None
    lower_best: float | None = None


def hear(pulse: Pulse, agent_id: str, sequence: int, clock: dt.datetime, now: dt.datetime) -> Pulse | None:
    """The pulse after this beat, or None when the beat is older than what was heard already."""
    measured = (clock - now).total_seconds()
    if agent_id == pulse.agent_id:
        if sequence <= pulse.sequence:
            return None
        return measure(replace(pulse, sequence=sequence), measured, now)
    if agent_id in pulse.replaced:
        return None
    replaced = pulse.replaced if pulse.agent_id is None else (*pulse.replaced, pulse.agent_id)[-_REMEMBERED:]
    offset = 0.0 if -FIRST_DELAY <= measured < 0 else measured
    return measure(Pulse(agent_id, sequence, replaced, offset), measured, now)


def measure(pulse: Pulse, measured: float, now: dt.datetime) -> Pulse:
    """The pulse with one more measurement of the offset, in seconds."""
    if pulse.offset is None or measured >= pulse.offset:
        return replace(pulse, offset=measured, lower_since=None, lower_best=None)
    since = pulse.lower_since or now
    best = measured if pulse.lower_best is None else max(measured, pulse.lower_best)
    if now - since >= PROOF:
        return replace(pulse, offset=best, lower_since=None, lower_best=None)
    return replace(pulse, lower_since=since, lower_best=best)


def sent_at(clock: dt.datetime, offset: float | None) -> dt.datetime:
    """When a report was sent, on our clock."""
    return clock - dt.timedelta(seconds=offset or 0.0)
