"""From what is to go and what was seen to the plan of a removal: what merges, in which order, what is refused. Pure.

Bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from contracts import errors
from services.snapshots import chain as rules
from services.snapshots import direction, ranges
from services.snapshots.direction import RULE, Policy
from services.snapshots.facts import DiskFacts
from services.snapshots.plan import MergePlan


@dataclass(frozen=True)
class Wanted:
    """One disk of one snapshot that is to go; `volume_id` holds it."""

    snapshot_id: str
    disk_id: str
    vm_id: str
    volume_id: str
    description: str


@dataclass(frozen=True)
class Refused:
    wanted: Wanted
    problem: errors.Problem


@dataclass(frozen=True)
class Seen:
    """A disk as it was found. `chain` is the database's; `promised`: what merges at work on its domain still need."""

    vm_id: str
    host_id: str
    domain_id: str
    domain_path: str
    chain: tuple[str, ...]
    facts: DiskFacts
    promised: int
    reserve: int
    policy: Policy = RULE


@dataclass(frozen=True)
class Planned:
    """One merge: the `position`th of its chain, removes `wanted`, the oldest first."""

    plan: MergePlan
    wanted: tuple[Wanted, ...]
    host_id: str
    domain_id: str
    domain_path: str
    reserve: int
    position: int


@dataclass(frozen=True)
class Sums:
    """Of one domain. `needs`: the peak while as many merges run as the limits allow."""

    merges: int
    copy: int
    needs: int
    returns: int


# -- one chain --------------------------------------------------------------------------------------------


def plan_chain(seen: Seen, wanted: Sequence[Wanted]) -> tuple[list[Planned], list[Refused]]:
    """The merges of one disk in their order, and what of it is refused."""
    try:
        rules.same_chain(seen.vm_id, seen.chain, seen.facts)
        kept = rules.shared(seen.chain, seen.facts)
    except errors.Problem as problem:
        return [], [Refused(one, problem) for one in wanted]
    by_volume = {one.volume_id: one for one in wanted}
    names = {volume_id: seen.facts.storage.volumes[volume_id].backing for volume_id in seen.chain}
    plans: list[MergePlan] = []
    problems: dict[str, errors.Problem] = {}
    for run in ranges.ranges(seen.chain, by_volume, kept):
        # live, libvirt puts names together; offline a plain one is written, however long those before were
        fitting, size = ranges.cut(seen.chain, run, names) if seen.facts.qemu.alive else (run, 0)
        problems |= {volume_id: errors.BackingTooLong(bytes=size) for volume_id in run[len(fitting) :]}
        try:
            plans += [_plan(seen, fitting)] if fitting else []
        except errors.Problem as problem:
            problems |= dict.fromkeys(fitting, problem)
    planned = [_planned(seen, plan, by_volume, number) for number, plan in enumerate(in_order(plans), 1)]
    taken = {volume_id for plan in plans for volume_id in plan.removed}
    refused = [Refused(one, _why_not(seen, one, problems, kept)) for one in wanted if one.volume_id not in taken]
    return planned, refused


def _plan(seen: Seen, run: Sequence[str]) -> MergePlan:
    plan = rules.plan_merge(seen.vm_id, seen.chain, run, seen.facts)
    plan = direction.cheaper(plan, seen.chain, seen.facts, seen.policy)
    rules.room(plan, seen.domain_id, seen.facts.storage.free, seen.promised, seen.reserve)
    return plan


def _planned(seen: Seen, plan: MergePlan, by_volume: Mapping[str, Wanted], position: int) -> Planned:
    wanted = tuple(by_volume[volume_id] for volume_id in plan.removed)
    return Planned(plan, wanted, seen.host_id, seen.domain_id, seen.domain_path, seen.reserve, position)


def _why_not(
    seen: Seen, one: Wanted, problems: Mapping[str, errors.Problem], kept: Mapping[str, errors.Problem]
) -> errors.Problem:
    if one.volume_id in problems:
        return problems[one.volume_id]
    if one.volume_id not in seen.chain[:-1]:
        what = "the active one" if one.volume_id in seen.chain else "not in the chain"
        reason = f"the snapshot's volume {one.volume_id} is {what}"
        return errors.ChainDiffers(disk_id=one.disk_id, reason=reason)
    above = seen.chain[seen.chain.index(one.volume_id) + 1]
    return kept[one.volume_id] if one.volume_id in kept else kept[above]


def in_order(plans: Iterable[MergePlan]) -> list[MergePlan]:
    """The merges of one chain, one after the other: those that need least space first. Each gives back at least what it
    needed, so no other order has a lower peak."""
    return sorted(plans, key=lambda plan: plan.needs)


def why(plan: MergePlan) -> str:
    """Why it is done in this way, for people."""
    count = len(plan.dropped)
    layers = (
        f"{count} layers in one job: a block that several of them hold is copied once" if count > 1 else "One layer"
    )
    note = f" {plan.note}." if plan.note else ""
    if plan.pull:
        return f"{layers}, up into the one above, which stays; no guest stands still for it.{note}"
    if plan.active:
        return f"{layers}; the guest writes to the uppermost one, so it stands still for a moment at the end.{note}"
    told = "the guest does not write to it" if count == 1 else "the guest writes to none of them"
    return f"{layers}; {told}.{note}"


def together(wanted: Iterable[Wanted], refused: Mapping[Wanted, errors.Problem]) -> dict[Wanted, errors.Problem]:
    """With each part that is refused all others of its snapshot, for the same reason."""
    first: dict[str, errors.Problem] = {}
    for one, problem in refused.items():
        first.setdefault(one.snapshot_id, problem)
    others = {one: first[one.snapshot_id] for one in wanted if one.snapshot_id in first}
    return {**others, **refused}


# -- all of it --------------------------------------------------------------------------------------------


def sums(planned: Iterable[Planned], per_host: int, per_domain: int) -> dict[str, Sums]:
    """By domain id, sorted."""
    by_domain: dict[str, list[Planned]] = {}
    for one in planned:
        by_domain.setdefault(one.domain_id, []).append(one)
    return {
        domain_id: Sums(
            len(found),
            sum(one.plan.copy for one in found),
            peak(found, per_host, per_domain),
            sum(one.plan.returns for one in found),
        )
        for domain_id, found in sorted(by_domain.items())
    }


def peak(planned: Iterable[Planned], per_host: int, per_domain: int) -> int:
    """At most so much space is needed at once on one domain: chains run in parallel, the merges of a chain one after
    the other, and what has ended gave back at least what it needed."""
    chains: dict[tuple[str, str], int] = {}
    for one in planned:
        key = (one.host_id, one.plan.disk_id)
        chains[key] = max(chains.get(key, 0), one.plan.needs)
    hosts: dict[str, list[int]] = {}
    for (host_id, _), needs in chains.items():
        hosts.setdefault(host_id, []).append(needs)
    at_once = [needs for found in hosts.values() for needs in sorted(found, reverse=True)[:per_host]]
    return sum(sorted(at_once, reverse=True)[:per_domain])
