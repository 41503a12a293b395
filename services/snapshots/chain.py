"""The rules of a merge: facts in, decision out. No I/O, nothing remembered.

A chain of the database is a tuple of volume ids, first volume first; the last one is active. A decision is a
`Verdict`: what to do and, in one sentence, why. Bytes everywhere.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts import errors
from services.snapshots.facts import DiskFacts, Job, Volume
from services.snapshots.plan import MergePlan

# A guest that keeps writing keeps `cur` a little behind `end` for ever. What is missing is copied by the pivot while
# the guest stands still, so it is kept small: 8 MiB take about 15 ms at the rate of a local disk.
GAP = 8 * 2**20
# Seconds of writing at the present rate that must still fit above the reserve: two looks.
AHEAD = 2.0


class Do(enum.Enum):
    """What to do after a look."""

    GO_ON = "go on"  # it holds
    WAIT = "wait"  # it is on its way
    ASK = "ask"  # it does not hold and nobody works on it
    GIVE_UP = "give up"  # it cannot be done, nothing of it is under way
    UNKNOWN = "unknown"  # nothing may be concluded; look again, for a bounded time


@dataclass(frozen=True)
class Verdict:
    do: Do
    why: str
    problem: errors.Problem | None = None


def order(parents: dict[str, str | None], active_id: str) -> tuple[str, ...]:
    """The chain of the database, first volume first. Raises ValueError for rows that form none."""
    found: list[str] = []
    here: str | None = active_id
    while here is not None:
        if here in found or here not in parents:
            raise ValueError(f"volume {here} is missing or twice in the chain of {active_id}")
        found.append(here)
        here = parents[here]
    return tuple(reversed(found))


# -- planning ---------------------------------------------------------------------------------------------


def plan_merge(vm_id: str, chain: Sequence[str], removed: Sequence[str], facts: DiskFacts) -> MergePlan:
    """The merge that removes the snapshots of these volumes, neighbours, oldest first, from a disk. The VM runs or not.

    Raises VmUnsure, ChainBroken, BackingOutside, ChainDiffers, VolumeInUse, TemplateVolume, ForeignJob, HypervisorAway.
    """
    _no_template(removed[0], facts)
    same_chain(vm_id, chain, facts)
    where = chain.index(removed[0])
    top = where + len(removed)
    if tuple(chain[where:top]) != tuple(removed):
        raise errors.ChainDiffers(disk_id=facts.disk_id, reason=f"{_told(removed)} is no part of {_told(chain)}")
    if top >= len(chain):
        raise errors.ChainDiffers(
            disk_id=facts.disk_id, reason=f"the snapshot's volume {removed[-1]} is the active one"
        )
    child_id = chain[top + 1] if top + 1 < len(chain) else None
    between = tuple(reversed(chain[where + 1 : top]))
    bare = MergePlan(vm_id, facts.disk_id, removed[0], chain[top], child_id, between=between)
    _no_foreign_job(bare, facts)
    _nobody_else(bare, chain, facts)
    return sized(bare, facts)


def sized(plan: MergePlan, facts: DiskFacts) -> MergePlan:
    """A block that several layers have is copied once, so no more than the image can hold is copied."""
    base, *others = (facts.storage.volumes[volume_id] for volume_id in (plan.base_id, *plan.dropped))
    most = max(volume.capacity for volume in (base, *others))
    gone = sum(volume.actual_size for volume in others)
    copy = min(gone, most)
    needs = min(copy, max(0, most - base.actual_size))
    return dataclasses.replace(plan, copy=copy, needs=needs, returns=max(0, gone - needs))


def same_chain(vm_id: str, chain: Sequence[str], facts: DiskFacts) -> None:
    """Refuse unless the storage, a living QEMU and libvirt all show the chain of the database.

    Raises VmUnsure, ChainBroken, BackingOutside, ChainDiffers, HypervisorAway.
    """
    if facts.unknown:
        raise errors.VmUnsure(vm_id=vm_id, reason=facts.unknown)
    if facts.storage.trouble is not None:
        raise facts.storage.trouble
    if facts.storage.problem or facts.storage.leaf is None:
        reason = facts.storage.problem or "no volume of it is the leaf"
        raise errors.ChainBroken(disk_id=facts.disk_id, reason=reason)
    _same(facts.disk_id, chain, facts.storage.chain(), "the storage")
    for volume_id in chain:
        volume = facts.storage.volumes[volume_id]
        if volume.parent_id != volume.backing_id:
            reason = f"volume {volume_id} has the parent {volume.parent_id} but the backing file {volume.backing_id}"
            raise errors.ChainBroken(disk_id=facts.disk_id, reason=reason)
    if not facts.qemu.alive:
        return
    if None in facts.qemu.chain:
        foreign = facts.qemu.paths[facts.qemu.chain.index(None)]
        raise errors.ChainDiffers(disk_id=facts.disk_id, reason=f"QEMU uses {foreign}, which is no volume of ours")
    _same(facts.disk_id, chain, tuple(reversed(facts.qemu.chain)), "QEMU")
    if facts.libvirt.state == "away":
        raise errors.HypervisorAway(host_id="of this VM", reason="no answer")
    if facts.libvirt.chain != facts.qemu.chain:
        raise errors.VmUnsure(vm_id=vm_id, reason=f"libvirt shows the chain {_told(facts.libvirt.chain)}")


def _same(disk_id: str, chain: Sequence[str], seen: Sequence[str | None], who: str) -> None:
    if tuple(chain) != tuple(seen):
        reason = f"the database has {_told(chain)}, {who} has {_told(seen)}"
        raise errors.ChainDiffers(disk_id=disk_id, reason=reason)


def _told(chain: Sequence[str | None]) -> str:
    return " <- ".join(volume_id or "a foreign file" for volume_id in chain) or "nothing"


def _no_foreign_job(plan: MergePlan, facts: DiskFacts) -> None:
    job = facts.job or facts.libvirt.job
    if job is not None and not ours(plan, job):
        raise errors.ForeignJob(disk_id=plan.disk_id, job=job.named())


def _no_template(base_id: str, facts: DiskFacts) -> None:
    """Refuse to merge into a template's volume, before anything else is found to be wrong."""
    if base_id in facts.storage.templates:
        raise _of_template(facts.storage.templates[base_id], facts)


def _of_template(volume: Volume, facts: DiskFacts) -> errors.TemplateVolume:
    owner = volume.template_disk_id or facts.disk_id
    return errors.TemplateVolume(action="A merge", volume_id=volume.volume_id, template_disk_id=owner)


def _nobody_else(plan: MergePlan, chain: Sequence[str], facts: DiskFacts) -> None:
    problems = shared(chain, facts)
    for volume_id in (*plan.removed, plan.top_id):
        if volume_id in problems:
            raise problems[volume_id]


def shared(chain: Sequence[str], facts: DiskFacts) -> dict[str, errors.Problem]:
    """The volumes of a chain that no merge may touch: a template's, and those with a child besides the one above."""
    found: dict[str, errors.Problem] = {}
    own: dict[str, str | None] = dict(zip(chain, (*chain[1:], None), strict=True))
    for volume in facts.storage.volumes.values():
        for parent in {volume.parent_id, volume.backing_id} & own.keys():
            if parent is not None and volume.volume_id != own[parent]:
                by = f"volume {volume.volume_id}"
                found[parent] = errors.VolumeInUse(volume_id=parent, by=by, branch_of=facts.disk_id)
    for volume_id in chain:
        if facts.storage.volumes[volume_id].volume_type == "shared":
            found[volume_id] = _of_template(facts.storage.volumes[volume_id], facts)
    return found


def ours(plan: MergePlan, job: Job) -> bool:
    """Does this job merge the same two volumes, in the same direction, below the same third one (or none)?"""
    ends = (job.base_id, job.top_id, job.child_id)
    return ends == (plan.base_id, plan.top_id, plan.child_id) and job.pulls is plan.pull


def room(plan: MergePlan, domain_id: str, free: int, promised: int, reserve: int) -> None:
    """Refuse with NoSpace unless its space is there while `promised` bytes of others and the reserve stay free."""
    has = max(0, free - promised - reserve)
    if plan.needs > has:
        raise errors.NoSpace(action="merging", needs=plan.needs, domain_id=domain_id, has=has)


def filling(plan: MergePlan, domain_id: str, facts: DiskFacts, rate: int, reserve: int) -> errors.NoSpace | None:
    """While the copy runs: the problem to stop it for before the reserve is touched, or None.

    What is left to copy may fit although the storage is nearly full; otherwise two looks' worth of writing must.
    """
    job = facts.job
    if job is None or job.ready or not plan.needs:
        return None
    coming = min(job.left, plan.needs, int(rate * AHEAD))
    has = facts.storage.free - reserve
    if has >= coming:
        return None
    return errors.NoSpace(action="merging", needs=job.left, domain_id=domain_id, has=max(0, has))


# -- the merge, step by step ------------------------------------------------------------------------------


def merged(plan: MergePlan, facts: DiskFacts) -> bool:
    """Has the image moved for good, so that the only way is forward?

    Internal, and pulls: the agent has recorded it on the storage; a header alone proves nothing, QEMU writes it before
    the tables of what stays (docs/adr/0013). Active: QEMU writes to base; or no QEMU lives and the mark on the storage
    names base as the leaf.
    """
    if not plan.active:
        return _moved(plan, facts, recorded=True) and plan.gone not in facts.qemu.chain
    if facts.qemu.alive:
        return facts.qemu.leaf == plan.base_id
    return facts.qemu.state == "absent" and facts.storage.leaf == plan.base_id


def whole(plan: MergePlan, facts: DiskFacts, kept: Mapping[str, Any]) -> bool:
    """Was nothing copied into base, so that its snapshot is what it was? Of a merge that turned back.

    `kept`: what its flow wrote down: `asked` and `untouched` (asks for the copy, and those of them that were refused
    before QEMU was asked), `seen` (a job on the disk, whose ever), `foreign` (one that was not ours). Where one answer
    is missing nobody knows. A pull writes nothing but top, so there it is enough that base is still where it was.
    """
    if kept.get("foreign"):
        return False
    asked = kept.get("seen") or kept.get("started") or kept.get("asked", 0) != kept.get("untouched", 0)
    if asked and not plan.pull:
        return False
    if facts.unknown or facts.job or facts.libvirt.job or facts.libvirt.mirror:
        return False
    there = facts.storage.chain()
    return {plan.base_id, plan.top_id} <= set(there) and there.index(plan.base_id) < there.index(plan.top_id)


def _moved(plan: MergePlan, facts: DiskFacts, *, recorded: bool) -> bool:
    """Does the volume whose header a job changes stand where it ought to, by that header; and, `recorded`, by the
    agent's record, of which the mark of the end that is gone is the first part?"""
    carrier = facts.storage.volumes.get(plan.carrier or "")
    if carrier is None or carrier.backing_id != plan.ground:
        return False
    gone = facts.storage.volumes.get(plan.gone)
    return not recorded or carrier.parent_id == plan.ground or gone is None or gone.legality == "illegal"


def _down(plan: MergePlan, facts: DiskFacts) -> Verdict:
    """No QEMU has the disk, and the merge is not done: it goes on offline, from what the storage shows."""
    if facts.offline is None:
        return Verdict(Do.ASK, "the VM is down: the agent merges")
    if not ours(plan, facts.offline):
        problem = errors.ForeignJob(disk_id=plan.disk_id, job=facts.offline.named())
        return Verdict(Do.GIVE_UP, str(problem), problem)
    return Verdict(Do.WAIT, f"copied {facts.offline.cur} of {facts.offline.end} bytes")


def commit(plan: MergePlan, facts: DiskFacts, started: bool) -> Verdict:
    """Is the copy done? `started`: the job was seen, or its start was answered; if it is gone now, it failed."""
    if facts.unknown:
        return Verdict(Do.UNKNOWN, facts.unknown)
    if merged(plan, facts):
        return _xml_caught_up(plan, facts)
    return _down(plan, facts) if facts.qemu.state == "absent" else _live(plan, facts, started)


def _live(plan: MergePlan, facts: DiskFacts, started: bool) -> Verdict:
    if facts.offline is not None:
        return Verdict(Do.UNKNOWN, "a QEMU was started while the agent merges; one of the two has to end")
    if facts.qemu.job is not None:
        return _running(plan, facts, facts.qemu.job, started)
    if not plan.active and plan.gone not in facts.qemu.chain and _moved(plan, facts, recorded=False):
        return Verdict(Do.ASK, f"QEMU left {plan.gone}, and that is not recorded yet")
    return _no_job(plan, facts, started)


def _no_job(plan: MergePlan, facts: DiskFacts, started: bool) -> Verdict:
    if facts.libvirt.job is not None or facts.libvirt.mirror:
        return Verdict(Do.UNKNOWN, "QEMU has no job, libvirt has not seen that yet")
    if started:
        end = "base" if plan.pull else "top"
        problem = errors.JobFailed(disk_id=plan.disk_id, reason=f"the job is gone and {end} is still in the chain")
        return Verdict(Do.GIVE_UP, str(problem), problem)
    if plan.gone not in facts.qemu.chain:
        return Verdict(Do.UNKNOWN, f"QEMU left {plan.gone}, but no header says so")
    return Verdict(Do.ASK, "no job runs")


def _xml_caught_up(plan: MergePlan, facts: DiskFacts) -> Verdict:
    """Such a job is done for libvirt too once the volume left its XML, which comes late (BZ 1202719)."""
    if not plan.active and facts.qemu.alive and plan.gone in facts.libvirt.chain:
        return Verdict(Do.UNKNOWN, f"QEMU left {plan.gone}, libvirt's XML still names it")
    return Verdict(Do.GO_ON, "what stays holds everything")


def _running(plan: MergePlan, facts: DiskFacts, job: Job, started: bool) -> Verdict:
    silent = job.base_id is None and job.top_id is None
    if not ours(plan, job) and not (silent and started):
        problem = errors.ForeignJob(disk_id=plan.disk_id, job=job.named())
        return Verdict(Do.GIVE_UP, str(problem), problem)
    if plan.active and ready(facts):
        return Verdict(Do.GO_ON, "both sides read the same but for what the guest writes now")
    return Verdict(Do.WAIT, f"copied {job.cur} of {job.end} bytes")


def ready(facts: DiskFacts) -> bool:
    """May an active commit be pivoted? QEMU's job says ready, libvirt's XML says `<mirror ready='yes'/>`, and little
    is left. `cur == end` alone proves nothing: it is so at 0 == 0 before the job began (BZ 1442266), and before the
    mirror is ready (BZ 1376580)."""
    job = facts.qemu.job
    return job is not None and job.ready and facts.libvirt.mirror and facts.libvirt.mirror_ready and job.left <= GAP


def pivot(plan: MergePlan, facts: DiskFacts) -> Verdict:
    """Does QEMU write to base, libvirt know it, and the storage say that top is illegal?"""
    if not plan.active:
        return Verdict(Do.GO_ON, "QEMU writes where it did: no pivot")
    if facts.unknown:
        return Verdict(Do.UNKNOWN, facts.unknown)
    if merged(plan, facts):
        return _pivoted(plan, facts)
    return _down(plan, facts) if facts.qemu.state == "absent" else _not_pivoted(plan, facts)


def _not_pivoted(plan: MergePlan, facts: DiskFacts) -> Verdict:
    if facts.qemu.leaf != plan.top_id:
        return Verdict(Do.UNKNOWN, f"QEMU writes to {facts.qemu.leaf}, which is neither base nor top")
    if facts.qemu.job is None:
        problem = errors.JobFailed(disk_id=plan.disk_id, reason="the mirror is gone before the pivot")
        return Verdict(Do.GIVE_UP, str(problem), problem)
    return Verdict(Do.ASK, "the mirror is ready")


def _pivoted(plan: MergePlan, facts: DiskFacts) -> Verdict:
    if not facts.qemu.alive:
        return Verdict(Do.GO_ON, "the VM stopped after the mark: base is the leaf")
    top = facts.storage.volumes.get(plan.top_id)
    if (top is not None and top.legality != "illegal") or facts.paused_by_pivot:
        return Verdict(Do.ASK, "QEMU writes to base, but the mark or the resume is missing")
    if facts.libvirt.mirror or facts.libvirt.chain[:1] != (plan.base_id,):
        return Verdict(Do.UNKNOWN, "QEMU writes to base, libvirt's XML does not say so yet")
    return Verdict(Do.GO_ON, "QEMU writes to base and top is marked")


def recorded(plan: MergePlan, facts: DiskFacts) -> Verdict:
    """Do `.meta` and headers agree with the chain as it is now? Asked after the agent wrote them."""
    if facts.unknown:
        return Verdict(Do.UNKNOWN, facts.unknown)
    stays = facts.storage.volumes.get(plan.stays)
    carrier = facts.storage.volumes.get(plan.carrier) if plan.carrier else None
    if stays is None or (plan.carrier and carrier is None):
        return Verdict(Do.UNKNOWN, "a volume that stays is missing on the storage")
    if carrier is not None and not carrier.parent_id == carrier.backing_id == plan.ground:
        words = f"the parent of {plan.carrier} is {carrier.parent_id}, its backing file {carrier.backing_id}"
        return Verdict(Do.UNKNOWN, words)
    if plan.child_id is None and facts.storage.leaf != plan.stays:
        return Verdict(Do.UNKNOWN, f"the storage's leaf is {facts.storage.leaf}")
    kept = [one for one in plan.dropped if one != plan.top_id and one in facts.storage.volumes]
    kept = [one for one in kept if not _dropped(facts, one)]
    if kept:
        return Verdict(Do.UNKNOWN, f"volume {kept[0]} is not marked yet")
    return _grown(stays, facts.storage.volumes.get(plan.top_id))


def _dropped(facts: DiskFacts, volume_id: str) -> bool:
    return facts.storage.volumes[volume_id].legality == "illegal"


def _grown(base: Volume, top: Volume | None) -> Verdict:
    if top is not None and base.capacity < top.capacity:
        return Verdict(Do.UNKNOWN, f"base has {base.capacity} bytes, the image has {top.capacity}")
    return Verdict(Do.GO_ON, "the storage shows the chain without top")


def returned(before: int, now: int) -> int:
    """Bytes that came back: what all volumes of the merge took before, less what the one that stays takes now."""
    return max(0, before - now)
