"""From a request to the draft of a removal: what it names, what merges and in which order, what is refused and why.

Nothing is changed here; a dry run ends with the draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from contracts import errors
from services.snapshots import asking, planning, store, store_jobs, store_lists, store_removals
from services.snapshots.desk import Desk
from services.snapshots.planning import Planned, Seen, Wanted
from services.snapshots.store_removals import Item

WAYS = ("snapshots", "disk_snapshots", "filter", "listed")
CONDITIONS = ("vm_id", "domain_id", "taken_before", "text")


@dataclass(frozen=True)
class Draft:
    """`wanted` in the order asked for; each is removed by one of `merges`, or `refused`."""

    wanted: tuple[Wanted, ...]
    merges: tuple[Planned, ...]
    refused: Mapping[Wanted, errors.Problem]

    @property
    def description(self) -> str:
        return described(self.wanted)


def described(wanted: Sequence[Wanted]) -> str:
    """'Remove snapshot before upgrade' or 'Remove 7 snapshots of 3 VMs'."""
    snapshots = list(dict.fromkeys(one.snapshot_id for one in wanted))
    if len(snapshots) == 1:
        return f"Remove snapshot {wanted[0].description or snapshots[0]}"
    vms = len({one.vm_id for one in wanted})
    return f"Remove {len(snapshots)} snapshots" + (f" of {vms} VMs" if vms > 1 else "")


# -- what a request names ---------------------------------------------------------------------------------


def named(desk: Desk, request: Mapping[str, Any]) -> list[Wanted]:
    """The parts that contracts.snapshots.RemoveSnapshots names. Raises BadRequest, NotFound, CountDiffers,
    NothingToRemove, LimitExceeded."""
    if len([way for way in WAYS if request[way] is not None]) != 1:
        raise _bad("snapshots", f"Name exactly one of {', '.join(WAYS)}.")
    with desk.db.read() as session:
        if request["snapshots"] is not None:
            store_removals.refuse_unknown(session, request["snapshots"])
            found = store_removals.wanted(session, request["snapshots"])
        elif request["disk_snapshots"] is not None:
            found = _of_pairs(session, [(one["snapshot_id"], one["disk_id"]) for one in request["disk_snapshots"]])
        elif request["filter"] is not None:
            found = _of_filter(desk, session, request)
        else:
            found = _of_list(desk, session, request)
    return _bounded(desk, found, "it names no snapshot with a disk")


def _of_pairs(session: Session, pairs: Sequence[tuple[str, str]]) -> list[Wanted]:
    store_removals.refuse_unknown(session, [snapshot_id for snapshot_id, _ in pairs])
    known = {(one.snapshot_id, one.disk_id): one for one in store_removals.wanted(session, [pair[0] for pair in pairs])}
    for snapshot_id, disk_id in pairs:
        if (snapshot_id, disk_id) not in known:
            raise errors.NotFound(kind=f"disk of snapshot {snapshot_id}", id=disk_id)
    return [known[pair] for pair in dict.fromkeys(pairs)]


def _of_filter(desk: Desk, session: Session, request: Mapping[str, Any]) -> list[Wanted]:
    condition = request["filter"]
    if all(condition[name] is None for name in CONDITIONS):
        raise _bad("filter", f"Name at least one of {', '.join(CONDITIONS)}.")
    _refuse_uncounted(request)
    found = store_removals.matching(session, condition)
    _refuse_surprise(desk, request, len(found))  # each has a disk at least
    return store_removals.wanted(session, found, condition["domain_id"])


def _of_list(desk: Desk, session: Session, request: Mapping[str, Any]) -> list[Wanted]:
    """The rows of the overview, as they are now."""
    _refuse_uncounted(request)
    condition = request["listed"]
    _refuse_surprise(desk, request, store_lists.count(session, condition["domain_id"], condition))
    return _of_pairs(session, store_lists.pairs(session, condition["domain_id"], condition))


def _refuse_uncounted(request: Mapping[str, Any]) -> None:
    if request["expected_count"] is None and not request["dry_run"]:
        raise _bad("expected_count", "A filter needs the number of snapshots that it should match (see dry_run).")


def _refuse_surprise(desk: Desk, request: Mapping[str, Any], found: int) -> None:
    """What is removed must be what somebody meant."""
    expected = request["expected_count"]
    if expected not in (None, found):
        raise errors.CountDiffers(found=found, expected=expected)
    _limited(desk, found)


def _bad(field: str, sentence: str) -> errors.BadRequest:
    return errors.BadRequest(errors={field: [sentence]})


def _bounded(desk: Desk, found: list[Wanted], why_none: str) -> list[Wanted]:
    if not found:
        raise errors.NothingToRemove(reason=why_none)
    _limited(desk, len(found))
    return found


def _limited(desk: Desk, value: int) -> None:
    limit = desk.settings.disks_per_removal
    if value > limit:
        raise errors.LimitExceeded(what="the number of disks of snapshots in one removal", value=value, limit=limit)


def left_over(desk: Desk, removal_id: str) -> list[Wanted]:
    """What a removal that has ended did not remove. Raises NotFound, FlowWrongState, NothingToRemove."""
    with desk.db.read() as session:
        job = store_jobs.job(session, removal_id)
        if job.kind != "removal":
            raise errors.NotFound(kind="removal", id=removal_id)
        if job.open:
            raise errors.FlowWrongState(flow_id=job.id, state=job.state, action="retry", needs="ended")
        done = {part.id for part in store_jobs.children(session, removal_id) if part.state == "done"}
        left = [item for item in store_removals.items(session, removal_id) if item.merge_id not in done]
        found = _still_there(session, left)
    return _bounded(desk, found, f"nothing is left of {removal_id}")


def _still_there(session: Session, left: Sequence[Item]) -> list[Wanted]:
    known = {
        (one.snapshot_id, one.disk_id): one for one in store_removals.wanted(session, [i.snapshot_id for i in left])
    }
    pairs = [(item.snapshot_id, item.disk_id) for item in left]
    return [known[pair] for pair in pairs if pair in known]


# -- what becomes of it -----------------------------------------------------------------------------------


def make(desk: Desk, wanted: Sequence[Wanted], *, apart: bool = False) -> Draft:
    """Look at everything, plan each chain, refuse what cannot be. A snapshot of which one disk is refused is refused
    with all of them, rather than made a remainder; `apart`: its disks were named one by one."""
    with desk.db.read() as session:
        refused = busy(session, wanted)
    if not apart:
        refused = planning.together(wanted, refused)
    seen = asking.look(desk, [one for one in wanted if one not in refused])
    while True:
        merges, problems = _planned(seen, [one for one in wanted if one not in refused])
        found = {**refused, **problems}
        found = found if apart else planning.together(wanted, found)
        if len(found) == len(refused) + len(problems):
            return Draft(tuple(wanted), tuple(merges), found)
        refused = found  # what is refused with its siblings may have been part of a range: plan again without it


def _planned(
    seen: Mapping[str, Seen | errors.Problem], wanted: Sequence[Wanted]
) -> tuple[list[Planned], dict[Wanted, errors.Problem]]:
    merges: list[Planned] = []
    refused: dict[Wanted, errors.Problem] = {}
    for disk_id, disk in seen.items():
        own = [one for one in wanted if one.disk_id == disk_id]
        if isinstance(disk, Seen):
            planned, problems = planning.plan_chain(disk, own)
            merges += planned
            refused |= {one.wanted: one.problem for one in problems}
        else:
            refused |= dict.fromkeys(own, disk)
    return merges, refused


def busy(session: Session, wanted: Sequence[Wanted]) -> dict[Wanted, errors.Problem]:
    """One job per disk, one per snapshot. (What is locked when the removal begins is what counts.)"""
    snapshots = store_removals.busy(session, {one.snapshot_id for one in wanted})
    disks = store.holders(session, {one.disk_id for one in wanted})
    held = {one: snapshots.get(one.snapshot_id) or disks.get(one.disk_id) for one in wanted}
    return {one: errors.DiskBusy(disk_id=one.disk_id, flow_id=job_id) for one, job_id in held.items() if job_id}
