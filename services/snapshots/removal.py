"""A removal: what a user asked for, as merges of many disks; each part has its own result.

It needs no step of the runner's, so it is no flow: the transactions in which its merges move also move it (`settle`
is the one function that does). Merges wait for a place on their host and on their domain, and behind each other on one
disk; the transaction that ends one lets the next one in; nothing polls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from chassis import context, logs
from chassis.database import after_commit
from contracts import errors, hostagent
from services.snapshots import draft, jobs, peers, store, store_jobs, store_removals, views
from services.snapshots.desk import Desk
from services.snapshots.draft import Draft
from services.snapshots.planning import Planned, Wanted
from services.snapshots.store_jobs import JobRow, MergeRow

_log = logs.get("snapshots")
Body = dict[str, Any]


# -- the request ------------------------------------------------------------------------------------------


def begin_one(desk: Desk, request: Body) -> Body:
    """All disks of one snapshot: contracts.snapshots.remove_snapshot."""
    ways = dict.fromkeys(draft.WAYS) | {"snapshots": [request["id"]]}
    job_id = _begin(desk, request, lambda: draft.named(desk, ways))
    with desk.db.read() as session:
        return jobs.view(session, store_jobs.job(session, job_id))


def begin(desk: Desk, request: Body) -> Body:
    """Many of them, or only the plan: contracts.snapshots.remove_snapshots."""
    return _planned_or_begun(desk, request, lambda: draft.named(desk, request))


def retry(desk: Desk, request: Body) -> Body:
    """What another removal has left: contracts.snapshots.retry_removal."""
    return _planned_or_begun(desk, request, lambda: draft.left_over(desk, request["id"]))


def _planned_or_begun(desk: Desk, request: Body, name: Callable[[], list[Wanted]]) -> Body:
    if request["dry_run"]:
        return views.planned(desk, request["job_id"], _drafted(desk, request, name))
    return get(desk, {"id": _begin(desk, request, name)})


def _drafted(desk: Desk, request: Mapping[str, Any], name: Callable[[], list[Wanted]]) -> Draft:
    apart = bool(request.get("disk_snapshots") or request.get("listed"))
    return draft.make(desk, name(), apart=apart)


def get(desk: Desk, request: Body) -> Body:
    """contracts.snapshots.Removal. Raises NotFound."""
    with desk.db.read() as session:
        return views.begun(desk, session, _removal(session, request["id"]))


def _removal(session: Session, removal_id: str) -> JobRow:
    job = store_jobs.job(session, removal_id)
    if job.kind != "removal":
        raise errors.NotFound(kind="removal", id=removal_id)
    return job


def _begin(desk: Desk, request: Mapping[str, Any], name: Callable[[], list[Wanted]]) -> str:
    """Refuse or start, or find what the same request began; answers the removal's id."""
    removal_id: str = request["job_id"]
    hashed = jobs.body_hash("removal", request)
    with desk.db.read() as session:
        if jobs.begun(session, removal_id, hashed) is not None:
            return removal_id
    made = _drafted(desk, request, name)
    with desk.db.write() as session:
        if jobs.begun(session, removal_id, hashed) is None:
            _start(desk, session, _still(session, made), removal_id=removal_id, request=request, hashed=hashed)
    return removal_id


def _still(session: Session, made: Draft) -> Draft:
    """What was planned and can still be begun. Raises the first refusal when that is nothing."""
    now = set(store_removals.wanted(session, {one.snapshot_id for one in made.wanted}))
    planned = [one for merge in made.merges for one in merge.wanted]
    refused = {**made.refused, **draft.busy(session, planned)}
    for one in planned:
        if one not in now:  # a merge ended while we looked
            refused.setdefault(one, errors.DiskBusy(disk_id=one.disk_id, flow_id="a job that ended just now"))
    lost = {one.snapshot_id for one in planned if one in refused}
    merges = list(made.merges)
    while gone := [merge for merge in merges if any(one.snapshot_id in lost for one in merge.wanted)]:
        lost |= {one.snapshot_id for merge in gone for one in merge.wanted}
        merges = [merge for merge in merges if merge not in gone]
    for one in planned:  # what went down with it; a race that ends so is rare, and a retry finds all of it
        if one.snapshot_id in lost:
            refused.setdefault(one, errors.DiskBusy(disk_id=one.disk_id, flow_id="another request"))
    if not merges:
        raise next(refused[one] for one in made.wanted if one in refused)
    return Draft(made.wanted, tuple(merges), refused)


def _start(
    desk: Desk, session: Session, made: Draft, *, removal_id: str, request: Mapping[str, Any], hashed: str
) -> None:
    for vm_id, disk_id in sorted({(merge.plan.vm_id, merge.plan.disk_id) for merge in made.merges}):
        store.lock(session, [disk_id], removal_id, vm_id)
    end = sum(merge.plan.copy for merge in made.merges)
    line = {"id": removal_id, "kind": "removal", "step": "merge", "body_hash": hashed, "end": end}
    _add_job(desk, session, made.wanted, **line)
    of: dict[Wanted, tuple[str, int]] = {}
    for merge in made.merges:
        merge_id = views.merge_id(removal_id, merge)
        of |= {one: (merge_id, place) for place, one in enumerate(merge.wanted)}
    store_removals.add_items(session, removal_id, made.wanted, of, made.refused)
    for merge in made.merges:
        _add_merge(desk, session, merge, removal_id, request["bandwidth"])
    for snapshot_id in sorted({one.snapshot_id for one in of}):
        store.claim_snapshot(session, snapshot_id, removal_id)
    jobs.tell(session, store_jobs.job(session, removal_id))
    let_in(desk, session)
    sentence = f"removal {removal_id}: begins with {len(of)} disks of snapshots in {len(made.merges)} merges"
    after_commit(session, lambda: _log.info(f"{sentence}, {len(made.refused)} are refused", flow_id=removal_id))


def _add_job(desk: Desk, session: Session, wanted: Sequence[Wanted], **line: Any) -> None:
    """`vm_id` and `snapshot_id` where there is but one."""
    vms, snapshots = {one.vm_id for one in wanted}, {one.snapshot_id for one in wanted}
    only = {
        "vm_id": min(vms) if len(vms) == 1 else None,
        "snapshot_id": min(snapshots) if len(snapshots) == 1 else None,
    }
    about = {"description": draft.described(wanted), "user": jobs.user(), "created_at": desk.now()}
    store_jobs.add(session, **only, **about, **line)


def _add_merge(desk: Desk, session: Session, one: Planned, removal_id: str, bandwidth: int) -> None:
    plan, merge_id = one.plan, views.merge_id(removal_id, one)
    line = {"id": merge_id, "kind": "merge", "parent_id": removal_id, "disk_id": plan.disk_id, "end": plan.copy}
    _add_job(desk, session, one.wanted, **line, step="waiting", body_hash="")
    store_jobs.add_merge(
        session,
        id=merge_id,
        removal_id=removal_id,
        vm_id=plan.vm_id,
        disk_id=plan.disk_id,
        position=one.position,
        base_id=plan.base_id,
        top_id=plan.top_id,
        child_id=plan.child_id,
        between=list(plan.between),
        pull=plan.pull,
        below_id=plan.below_id,
        note=plan.note,
        host_id=one.host_id,
        domain_id=one.domain_id,
        domain_path=one.domain_path,
        reserve=one.reserve,
        bandwidth=bandwidth,
        copy_bytes=plan.copy,
        needs=plan.needs,
        returns=plan.returns,
    )
    jobs.tell(session, store_jobs.job(session, merge_id))


# -- places -----------------------------------------------------------------------------------------------


def let_in(desk: Desk, session: Session) -> None:
    """Start the flows of merges that wait, as far as the limits per host and per domain allow."""
    store_jobs.shut_gate(session)
    hosts, domains = store_jobs.taken(session, "host_id"), store_jobs.taken(session, "domain_id")
    disks = store_jobs.working(session)
    for merge in store_jobs.waiting(session):
        if merge.disk_id in disks:
            continue
        host, domain = hosts.get(merge.host_id, 0), domains.get(merge.domain_id, 0)
        if host >= desk.settings.merges_per_host or domain >= desk.settings.merges_per_domain:
            continue
        hosts[merge.host_id], domains[merge.domain_id] = host + 1, domain + 1
        disks.add(merge.disk_id)
        store_jobs.change_merge(session, merge.id, let_in=True)
        user = store_jobs.job(session, merge.id).user
        with context.use(dataclasses.replace(context.current(), user=user)):
            desk.runner.start(session, "merge", merge.id, merge.disk_id, {"removal_id": merge.removal_id})


# -- its state --------------------------------------------------------------------------------------------


def settle(desk: Desk, session: Session, removal_id: str) -> None:
    """The only function that changes a removal's state: from those of its merges."""
    job = store_jobs.job(session, removal_id)
    if not job.open:
        return
    before, parts = job.state, store_jobs.children(session, removal_id)
    changes = _changes(parts, store_removals.first_refusal(session, removal_id))
    if changes["state"] in jobs.ENDED:
        changes |= {"finished_at": desk.now(), "result": _result(session, removal_id, parts)}
    job = store_jobs.change(session, removal_id, **changes, **jobs.sums(parts), told_at=desk.now())
    jobs.tell(session, job)
    done = sum(part.state == "done" for part in parts)
    sentence = f"removal {removal_id}: is {job.state}, {done} of {len(parts)} merges are done"
    if job.state != before:
        after_commit(session, lambda: _log.info(sentence, flow_id=removal_id, state=job.state))


def _changes(parts: list[JobRow], refusal: Body | None) -> dict[str, Any]:
    """Running while anything moves; stuck when only a person can go on; done when all of it is gone."""
    first = next((part for part in parts if part.state == "stuck"), None)
    held = {part.disk_id for part in parts if part.state == "stuck"}  # the next merges of these chains wait for it
    states = {part.state for part in parts if part.step != "waiting" or part.disk_id not in held}
    if states & set(store_jobs.BUSY):
        return {"state": "running", "reason": None, "action": None}
    if first is not None:
        return {"state": "stuck", "reason": first.reason, "action": first.action}
    failed = next((part.reason for part in parts if part.state == "undone"), refusal)
    if failed is None:
        return {"state": "done", "reason": None, "action": None, "past": True}
    return {"state": "undone", "reason": failed, "action": None}


def ended(desk: Desk, session: Session, merge: MergeRow) -> None:
    """A merge is over: its disk is free after the last one of the chain, its snapshots go, or stay with their rest."""
    if not store_jobs.left_of_disk(session, merge.removal_id, merge.disk_id):
        store.unlock(session, merge.removal_id, merge.disk_id)
    for snapshot_id in store_removals.snapshots_of(session, [merge.id])[merge.id]:
        if not store_removals.open_merges_of(session, merge.removal_id, snapshot_id):
            _finish_snapshot(session, merge.removal_id, snapshot_id)


def _finish_snapshot(session: Session, removal_id: str, snapshot_id: str) -> None:
    if not store.disks_of(session, snapshot_id):
        store.delete_snapshot(session, snapshot_id)
        return
    some = store_removals.any_done(session, removal_id, snapshot_id)
    changes: dict[str, Any] = {"partly_removed": True, "restorable": False} if some else {}
    kept = store_removals.kept(session, removal_id, snapshot_id)
    if not some and _came_to_nothing(kept, snapshot_id):
        changes = {"restorable": True}
    store.change_snapshot(session, snapshot_id, state="ok", job_id=None, **changes)


def _came_to_nothing(kept: list[dict[str, Any]], snapshot_id: str) -> bool:
    """Of all its merges that were planned: they took its restorability away, and none has copied anything."""
    return any(snapshot_id in data.get("marked", ()) for data in kept) and all(data.get("whole") for data in kept)


def _result(session: Session, removal_id: str, parts: list[JobRow]) -> dict[str, Any]:
    merges = {row.id: row for row in store_jobs.merges_of(session, removal_id)}
    removes = store_removals.snapshots_of(session, merges)
    items: list[dict[str, Any]] = [
        {
            "merge_id": part.id,
            "disk_id": part.disk_id,
            "snapshot_ids": removes[part.id],
            "state": part.state,
            "reason": jobs.reason(part.reason),
            "bytes_merged": merges[part.id].bytes_merged,
            "bytes_returned": merges[part.id].bytes_returned,
        }
        for part in parts
    ]
    sums = {key: sum(item[key] for item in items) for key in ("bytes_merged", "bytes_returned")}
    refused = sum(item.refusal is not None for item in store_removals.items(session, removal_id))
    return {**sums, "items": items, "refused": refused}


# -- what a person asks for while it goes on --------------------------------------------------------------


def cancel_removal(desk: Desk, request: Body) -> Body:
    """What is not done yet does not happen: contracts.snapshots.cancel_removal. Raises NotFound, TooLate."""
    with desk.db.write() as session:
        job = _removal(session, request["id"])
        if job.state == "done":
            raise errors.TooLate(flow_id=job.id)
        if job.open:
            cancel(desk, session, job)
        return views.begun(desk, session, _removal(session, job.id))


def cancel(desk: Desk, session: Session, job: JobRow) -> None:
    """Turn back what can turn back. Raises TooLate when nothing can."""
    parts = [part for part in store_jobs.children(session, job.id) if part.open]
    # those with a flow first: moves take a flow's row, then the gate, and so must we
    turned = [cancel_merge(desk, session, part) for part in sorted(parts, key=lambda part: part.step == "waiting")]
    if not any(turned):
        raise errors.TooLate(flow_id=job.id)


def cancel_merge(desk: Desk, session: Session, job: JobRow) -> bool:
    """Ask one merge to turn back; False after its point of no return. One that waits for a place ends at once."""
    merge = store_jobs.merge(session, job.id)
    if not merge.let_in:
        store_jobs.shut_gate(session)
        merge = store_jobs.merge(session, job.id)
    if not merge.let_in:
        reason = errors.Cancelled(user=jobs.user()).to_wire()
        changed = store_jobs.change(session, job.id, state="undone", reason=reason, finished_at=desk.now())
        jobs.tell(session, changed)
        ended(desk, session, merge)
        settle(desk, session, merge.removal_id)
        return True
    try:
        row = desk.runner.cancel(session, job.id)
    except errors.TooLate:
        return False
    if row.cancel_by is not None and row.active:
        jobs.tell(session, store_jobs.change(session, job.id, cancelling=True))
    return True


def resume(desk: Desk, session: Session, job: JobRow) -> None:
    """Put every stuck merge of it back to work."""
    for part in store_jobs.children(session, job.id):
        if part.state == "stuck":
            desk.runner.resume(session, part.id)


def limit(desk: Desk, job: JobRow, bandwidth: int) -> None:
    """Bytes per second for each merge of it: for those that run at once, for the others when they begin to copy."""
    with desk.db.write() as session:
        parts = store_jobs.children(session, job.id) if job.kind == "removal" else [job]
        merges = [store_jobs.merge(session, part.id) for part in parts if part.open]
        for merge in merges:
            store_jobs.change_merge(session, merge.id, bandwidth=bandwidth)
        copying = [merge for merge in merges if store_jobs.job(session, merge.id).step == "commit"]
        claims = {merge.id: store_jobs.claim(session, merge.id) for merge in copying}
    for merge in copying:
        request = {
            "vm_id": merge.vm_id,
            "disk": peers.disk_ref(merge.disk_id, merge.domain_id, merge.domain_path),
            "bandwidth": bandwidth,
            "claim": {"flow_id": merge.id, "number": claims[merge.id]},
        }
        desk.peers.ask(merge.host_id, hostagent.set_bandwidth, request)
