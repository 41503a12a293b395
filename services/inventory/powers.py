"""Which state a VM is in, and who may do what in it. Pure.

The state follows reports: heartbeats list what runs on a host, news tell one change. Silence is no report. Three
rules keep old or missing reports from doing harm:

- `trust_after`: a report that was sent before this moment (on our clock) cannot end a running VM or revive one
  that is down. While a start may still be carried out, that moment lies behind the last at which it could be.
- A VM on a silent host is `unknown`, never down, and is started nowhere.
- Two hosts that both report a VM make it `unsure` until one of them says that it does not run there.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

from contracts import errors

ENDED = ("down", "absent")
WAITING = ("starting", "shutting_down", "powering_off")
SETTLE = dt.timedelta(seconds=2)  # a list that was made while an ask was answered may be sent this much after it


@dataclass(frozen=True)
class Power:
    """What we hold of one VM. `since`: when the state began. `heard`: when the last believed report was sent.
    `also_on`: a second host that reports the VM. All times on our clock."""

    state: str
    since: dt.datetime
    trust_after: dt.datetime
    host_id: str | None = None
    also_on: str | None = None
    reason: str = ""
    heard: dt.datetime | None = None


@dataclass(frozen=True)
class Report:
    """One host's word about one VM. `state`: running, paused, down, unsure, absent (a complete list lacks it)."""

    host_id: str
    state: str
    at: dt.datetime
    reason: str = ""
    by_agent: bool = False


@dataclass(frozen=True)
class Patience:
    """How long a VM that was asked to end may still run before it counts as running again."""

    shut_down: dt.timedelta = dt.timedelta(minutes=5)
    power_off: dt.timedelta = dt.timedelta(minutes=1)


def follow(power: Power, report: Report, patience: Patience) -> Power:
    """The VM's state after one report. The same object comes back when nothing changes."""
    if power.state == "deleting":
        return power
    if report.host_id == power.host_id:
        return _at_home(power, report, patience)
    if report.host_id == power.also_on:
        return _at_second(power, report)
    if report.state in ENDED or report.at < power.since + SETTLE:
        return power
    return _elsewhere(power, report)


def _at_home(power: Power, report: Report, patience: Patience) -> Power:
    if power.heard is not None and report.at < power.heard:
        return power
    if report.state in ENDED:
        return _ended(power, report)
    if power.also_on is not None:
        return replace(power, heard=report.at)
    if power.state in WAITING and not _given_up(power, report, patience):
        return power
    if report.by_agent and report.state == "paused" and power.state == "running":
        return power  # the pause around a pivot lasts milliseconds and is no news to a user
    return _become(power, report, report.state, _why(power, report))


def _given_up(power: Power, report: Report, patience: Patience) -> bool:
    """Whether a living VM leaves the state in which something was asked of it."""
    if report.state == "unsure":
        return True
    if power.state == "starting":
        return report.at >= power.since and not report.by_agent
    limit = patience.shut_down if power.state == "shutting_down" else patience.power_off
    return report.at >= power.since + limit


def _why(power: Power, report: Report) -> str:
    if report.state == "unsure":
        return report.reason
    if power.state == "shutting_down":
        return "the guest did not follow the request to shut down"
    if power.state == "powering_off":
        return "it was not powered off"
    return report.reason


def _ended(power: Power, report: Report) -> Power:
    if report.at < power.trust_after:
        return power
    if power.also_on is not None:
        moved = replace(power, host_id=power.also_on, also_on=None)
        return _become(moved, report, "running", f"it runs on {power.also_on}, no longer on {report.host_id}")
    reason = "the start was not carried out" if power.state == "starting" else report.reason
    return down(power, report.at, reason)


def _at_second(power: Power, report: Report) -> Power:
    if report.state not in ENDED or report.at < (power.heard or power.since):
        return power
    return _become(replace(power, also_on=None), report, "running", f"it no longer runs on {report.host_id}")


def _elsewhere(power: Power, report: Report) -> Power:
    """A host reports a VM that we hold to be down, or on another host."""
    if power.host_id is None or power.state == "unknown":
        moved = replace(power, host_id=report.host_id, also_on=None)
        where = "down" if power.host_id is None else f"on {power.host_id}, which is silent"
        return _become(moved, report, report.state, f"it was found on {report.host_id}; it was thought to be {where}")
    reason = f"{power.host_id} and {report.host_id} both report it"
    return _become(replace(power, also_on=report.host_id), report, "unsure", reason)


def _become(power: Power, report: Report, state: str, reason: str) -> Power:
    if (power.state, power.reason) == (state, reason):
        return replace(power, heard=report.at)
    if power.state == state and reason == "":  # a reason worth keeping is not wiped by the next plain beat
        return replace(power, heard=report.at)
    since = power.since if power.state == state else report.at
    return replace(power, state=state, reason=reason, since=since, heard=report.at)


# -- what we do ourselves ---------------------------------------------------------------------------------


def down(power: Power, now: dt.datetime, reason: str = "") -> Power:
    """It was proved not to run. Reports sent before now plus SETTLE do not revive it."""
    return Power("down", now, now + SETTLE, reason=reason, heard=power.heard)


def starting(power: Power, host_id: str, now: dt.datetime, until: dt.datetime) -> Power:
    """A start is asked of a host; until `until` a report that it does not run there says nothing."""
    return Power("starting", now, until, host_id=host_id, heard=power.heard)


def stopping(power: Power, state: str, now: dt.datetime) -> Power:
    """It was asked to end, by the guest (shutting_down) or by force (powering_off)."""
    if power.state == state:
        return power
    return replace(power, state=state, since=now, reason="")


def back(power: Power, before: Power, now: dt.datetime) -> Power:
    """An ask was refused: the VM is as it was before. A repeated ask began in the asked state itself."""
    state = "running" if before.state == power.state else before.state
    return replace(power, state=state, since=now, reason=before.reason)


def wait(power: Power, why: str) -> Power:
    """The end of an ask is unknown; reports will settle it."""
    return replace(power, reason=f"not settled yet: {why}") if power.state in WAITING else power


def answered(power: Power, state: str, reason: str, now: dt.datetime) -> Power:
    """The host answered an ask with QEMU's own state."""
    if state == "down":
        return down(power, now, reason)
    if power.also_on is not None:
        return power
    if power.state == state:
        return replace(power, trust_after=now + SETTLE)
    return replace(power, state=state, reason=reason, since=now, trust_after=now + SETTLE)


def silent(power: Power, now: dt.datetime) -> Power:
    """Its host is silent: it may run or not."""
    if power.state in ("down", "unknown", "deleting"):
        return power
    return replace(power, state="unknown", since=now, reason=f"its host is silent; it was {power.state}")


# -- who may what -----------------------------------------------------------------------------------------


def need(vm_id: str, state: str, action: str, *allowed: str, reason: str = "") -> None:
    """Refuse an action in the wrong state."""
    if state in allowed:
        return
    if state == "unsure":
        raise errors.VmUnsure(vm_id=vm_id, reason=reason)
    raise errors.VmWrongState(vm_id=vm_id, state=state, action=action, needs=" or ".join(allowed))
