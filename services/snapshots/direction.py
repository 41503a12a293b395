"""Which way a merge goes: down (commit) or up (pull). Facts in, plan out; no I/O.

A commit copies what top holds down into base; a pull copies what base holds up into top, and QEMU goes on where it was:
no pivot, the guest stands still for nothing. libvirt pulls into the active volume only; of a VM that is down qemu-img
pulls into any. A commit is the rule: it leaves no name in any header when top is active, and layers that hold about the
same are copied as fast one way as the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.snapshots import chain as rules
from services.snapshots import ranges
from services.snapshots.facts import DiskFacts, Volume
from services.snapshots.plan import MergePlan


@dataclass(frozen=True)
class Policy:
    """Pull where a commit would copy at least `ratio` times as much, and at least `saves` bytes more; under a VM that
    runs only if it is `on`."""

    ratio: float = 4.0
    saves: int = 256 * 2**20
    on: bool = False


RULE = Policy()


def cheaper(plan: MergePlan, chain: Sequence[str], facts: DiskFacts, policy: Policy) -> MergePlan:
    """The plan of a commit that may be done, or that of the pull which does the same for far less. `note` says why."""
    if facts.qemu.alive and not plan.active:
        return plan
    pull = _up(plan, facts)
    both = f"pulling would copy {size(pull.copy)}, committing {size(plan.copy)}"
    if pull.copy * policy.ratio > plan.copy or plan.copy - pull.copy < policy.saves:
        return dataclasses.replace(plan, note=f"Not pulled: {both}, which is not far more")
    if barred := _barred(pull, chain, facts, policy):
        return dataclasses.replace(plan, note=f"Not pulled, although {both}: {barred}")
    return dataclasses.replace(pull, note=f"{both[0].upper()}{both[1:]}".replace("would copy", "copies", 1))


def now(plan: MergePlan, chain: Sequence[str], facts: DiskFacts, policy: Policy) -> MergePlan:
    """What becomes of a plan that was made while the VM ran, or while it was down. A pull that is barred now is the
    commit that does the same: what was pulled already is in top twice, and goes. Once QEMU has left base there is no
    way but to record it; what is at work keeps the ends that it was asked for with."""
    at_work = facts.job is not None or facts.libvirt.job is not None
    if not plan.pull or at_work or (facts.qemu.alive and plan.gone not in facts.qemu.chain):
        return plan
    if (barred := _barred(plan, chain, facts, policy)) is None:
        return plan
    note = f"It was to be pulled, but now {barred}"
    return rules.sized(dataclasses.replace(plan, pull=False, below_id=None, note=note), facts)


def _up(plan: MergePlan, facts: DiskFacts) -> MergePlan:
    """The same as a pull. A block that several layers have is copied once."""
    volumes = facts.storage.volumes
    top, gone = volumes[plan.top_id], [volumes[volume_id] for volume_id in plan.removed]
    most = max(volume.capacity for volume in (top, *gone))
    taken = sum(volume.actual_size for volume in gone)
    copy = min(taken, most)
    needs = min(copy, max(0, most - top.actual_size))
    back, below_id = max(0, taken - needs), volumes[plan.base_id].backing_id
    return dataclasses.replace(plan, pull=True, below_id=below_id, copy=copy, needs=needs, returns=back)


def _barred(pull: MergePlan, chain: Sequence[str], facts: DiskFacts, policy: Policy) -> str | None:
    """Why it may not be pulled, whatever that would save."""
    volumes = facts.storage.volumes
    if facts.qemu.alive and pull.child_id is not None:
        return "the VM runs, and libvirt pulls into its active volume only"
    if facts.qemu.alive and not policy.on:
        return "the VM runs, and pulls are off then (DRYSTONE_PULLS)"
    unfit = next((id_ for id_ in (*pull.removed, pull.top_id) if not volumes[id_].pulls), None)
    if unfit is not None:
        return f"volume {unfit} is raw, of an old version of qcow2, or keeps dirty bitmaps"
    base = volumes[pull.base_id]
    if base.backing is not None and (base.backing_id is None or "/" in base.backing):
        return f"it stands on {base.backing}, which is in another folder"
    return _barred_live(pull, chain, volumes) if facts.qemu.alive else _barred_offline(pull, volumes)


def _barred_live(pull: MergePlan, chain: Sequence[str], volumes: Mapping[str, Volume]) -> str | None:
    length = _written(pull, chain, volumes)
    return f"libvirt would write a backing file name of {length} bytes" if length > ranges.MAX_BACKING else None


def _barred_offline(pull: MergePlan, volumes: Mapping[str, Volume]) -> str | None:
    """Some versions of `qemu-img rebase` never end where a volume is smaller than the one above it."""
    smaller = next((id_ for id_ in pull.removed if volumes[id_].capacity != volumes[pull.top_id].capacity), None)
    return None if smaller is None else f"volume {smaller} has another size than {pull.top_id}"


def _written(pull: MergePlan, chain: Sequence[str], volumes: Mapping[str, Volume]) -> int:
    """Bytes of the name that libvirt writes into top; without anything below it writes none."""
    if pull.below_id is None:
        return 0
    names = {volume_id: volumes[volume_id].backing for volume_id in chain}
    base, top = chain.index(pull.base_id), chain.index(pull.top_id)
    return ranges.written(chain, base - 1, top - 1, names)


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
