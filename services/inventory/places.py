"""Which host does a piece of work. Frozen facts in, a host id out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from contracts import errors


@dataclass(frozen=True)
class Place:
    """A host as the choice needs it. `memory` and `used` in bytes, `clock_offset` in seconds."""

    host_id: str
    cluster_id: str
    state: str
    clock_offset: float = 0.0
    memory: int = 0
    used: int = 0
    problem: str = ""
    leases_fault: str = ""

    @property
    def how(self) -> str:
        """The state, and why when its agent said why."""
        return f"{self.state} ({self.problem})" if self.state == "problem" and self.problem else self.state

    @property
    def room(self) -> int:
        return self.memory - self.used


def check_clock(place: Place, limit: float) -> None:
    """Refuse a host whose clock is too far off: deadlines are wall-clock, it would run what is stale."""
    if abs(place.clock_offset) > limit:
        raise errors.ClockOff(host_id=place.host_id, seconds=round(place.clock_offset, 1))


def check(place: Place, limit: float, *states: str) -> None:
    """Refuse a host that may not be asked for anything dangerous: not up (or in one of `states`), or with a clock
    that is more than `limit` seconds off."""
    if place.state not in (states or ("up",)):
        raise errors.HostNotUp(host_id=place.host_id, state=place.how)
    check_clock(place, limit)


def is_fit(place: Place, limit: float) -> bool:
    return place.state == "up" and abs(place.clock_offset) <= limit


def choose(places: Iterable[Place], kind: str, group: str, limit: float, *, leased: bool = False) -> str:
    """The fit host with the most free memory. `kind` and `group`: of which cluster or data center, for the error.
    `leased`: for a VM that takes a lease, which some hosts cannot."""
    known = list(places)
    fit = [place for place in known if is_fit(place, limit)]
    if not fit:
        raise errors.NoHost(kind=kind, id=group, reason=_why(known, limit))
    unfit = [place for place in fit if leased and place.leases_fault]
    if len(unfit) == len(fit):
        raise errors.NoHost(kind=kind, id=group, reason=f"none can take leases of VMs: {unfit[0].leases_fault}")
    fit = [place for place in fit if place not in unfit]
    return min(fit, key=lambda place: (-place.room, place.host_id)).host_id


def _why(places: list[Place], limit: float) -> str:
    if not places:
        return "it has no host"
    off = [place for place in places if place.state == "up"]
    if off:
        return f"the clocks of {len(off)} hosts are more than {limit:g} s off"
    states = sorted({place.how for place in places})
    return f"its hosts are {', '.join(states)}"
