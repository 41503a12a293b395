"""A removal: what a user asked for. It becomes one merge per disk; each has its own result.

It needs no step of the runner's, so it is no flow: the transactions in which its merges move also move it (`settle`
is the one function that does). Merges wait for a place on their host and on their domain, and the transaction that
ends one lets the next one in; nothing polls. Many snapshots and many VMs fit: a removal is a list of merges.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from chassis import context, logs
from chassis.database import after_commit
from contracts import errors, hostagent
from services.snapshots import chain, jobs, peers, store, store_jobs
from services.snapshots.desk import Desk
from services.snapshots.facts import DiskFacts
from services.snapshots.store_jobs import JobRow

ACTION = "removing a snapshot"
_log = logs.get("snapshots")


@dataclass(frozen=True)
class Item:
    """One disk of a removal, as it was planned."""

    merge_id: str
    plan: chain.MergePlan
    host_id: str
    domain: Mapping[str, Any]
    facts: DiskFacts


# -- the request ------------------------------------------------------------------------------------------


def begin(desk: Desk, request: dict[str, Any]) -> dict[str, Any]:
    """Refuse or start: contracts.snapshots.remove_snapshot."""
    hashed = jobs.body_hash("removal", request)
    with desk.db.read() as session:
        job = jobs.begun(session, request["job_id"], hashed)
        if job is not None:
            return job
        snapshot = store.snapshot(session, request["id"])
        _refuse_unfinished(snapshot)
        store.refuse_locked(session, [line["disk_id"] for line in snapshot["disks"]])
    items = plan(desk, snapshot, request["job_id"])
    with desk.db.write() as session:
        return jobs.begun(session, request["job_id"], hashed) or _start(
            desk, session, snapshot, items=items, request=request, hashed=hashed
        )


def _refuse_unfinished(snapshot: Mapping[str, Any]) -> None:
    if snapshot["state"] != "ok" and snapshot["disks"]:
        raise errors.DiskBusy(disk_id=snapshot["disks"][0]["disk_id"], flow_id=snapshot["job_id"])


def plan(desk: Desk, snapshot: Mapping[str, Any], removal_id: str) -> list[Item]:
    """Look at every disk and refuse what cannot be merged. A place for offline merges is here: a VM that is down."""
    vm = desk.peers.vm(snapshot["vm_id"])
    host_id = running_on(vm, ACTION)
    desk.peers.host_up(host_id)
    plugged = {disk["id"]: disk for disk in vm["disks"]}
    items = []
    for line in snapshot["disks"]:
        disk = plugged.get(line["disk_id"])
        if disk is None:
            reason = f"the disk is not plugged in VM {vm['id']}"
            raise errors.ChainDiffers(disk_id=line["disk_id"], reason=reason)
        items.append(_plan_disk(desk, vm, host_id, disk, base_id=line["volume_id"], removal_id=removal_id))
    return items


def _plan_disk(
    desk: Desk, vm: Mapping[str, Any], host_id: str, disk: Mapping[str, Any], *, base_id: str, removal_id: str
) -> Item:
    domain = desk.peers.active_domain(disk["domain_id"])
    merge_id = str(uuid.uuid5(uuid.UUID(removal_id), disk["id"]))
    facts = desk.peers.look(host_id, vm["id"], peers.disk_ref(disk["id"], domain["id"], domain["path"]))
    with desk.db.read() as session:
        known = store.chain_of(session, disk["id"])
        promised = store_jobs.promised(session, domain["id"], merge_id)
    if base_id not in known:
        raise errors.ChainDiffers(disk_id=disk["id"], reason=f"the snapshot's volume {base_id} is not in the chain")
    made = chain.plan_merge(vm["id"], known, base_id, facts)
    chain.room(made, domain["id"], facts.storage.free, promised, desk.settings.reserve(domain["total"]))
    return Item(merge_id, made, host_id, domain, facts)


def running_on(vm: Mapping[str, Any], action: str) -> str:
    """The host on which the VM's QEMU lives. Raises VmWrongState, VmUnsure, HostNotUp."""
    if vm["state"] in ("running", "paused") and vm["host_id"]:
        return str(vm["host_id"])
    refuse_between(vm, action, "running")
    action = f"{action} (offline merges come with a later version)" if vm["state"] == "down" else action
    raise errors.VmWrongState(vm_id=vm["id"], state=vm["state"], action=action, needs="running")


def refuse_between(vm: Mapping[str, Any], action: str, needs: str) -> None:
    """Refuse a VM of which nobody can say where and whether it runs. Raises VmUnsure, HostNotUp, VmWrongState."""
    if vm["state"] == "unsure":
        raise errors.VmUnsure(vm_id=vm["id"], reason=vm["reason"] or "they disagree")
    if vm["state"] == "unknown":
        raise errors.HostNotUp(host_id=vm["host_id"], state="silent")
    if vm["state"] not in ("running", "paused", "down"):
        raise errors.VmWrongState(vm_id=vm["id"], state=vm["state"], action=action, needs=needs)


def _start(
    desk: Desk,
    session: Session,
    snapshot: Mapping[str, Any],
    *,
    items: list[Item],
    request: Mapping[str, Any],
    hashed: str,
) -> dict[str, Any]:
    removal_id, vm_id, now = request["job_id"], snapshot["vm_id"], desk.now()
    current = store.snapshot(session, snapshot["id"])
    _refuse_unfinished(current)
    if current["disks"] != snapshot["disks"]:  # a merge ended while we looked
        raise errors.DiskBusy(disk_id=snapshot["disks"][0]["disk_id"], flow_id=current["job_id"] or "another job")
    store.lock(session, [item.plan.disk_id for item in items], removal_id, vm_id)
    shared = {"vm_id": vm_id, "snapshot_id": snapshot["id"], "user": jobs.user(), "created_at": now}
    words = f"Remove snapshot {snapshot['description'] or snapshot['id']}"
    end = sum(item.plan.copy for item in items)
    line = {"id": removal_id, "kind": "removal", "step": "merge", "description": words, "body_hash": hashed}
    store_jobs.add(session, **shared, **line, end=end)
    of = {"parent_id": removal_id, "description": words}
    for item in items:
        _add_merge(desk, session, item, shared=shared, of=of, bandwidth=request["bandwidth"])
    store.change_snapshot(session, snapshot["id"], state="removing", job_id=removal_id)
    jobs.tell(session, store_jobs.job(session, removal_id))
    let_in(desk, session)
    if not items:
        settle(desk, session, removal_id)
    after_commit(session, lambda: _log.info(f"removal of {snapshot['id']}: begins with {len(items)} disks"))
    return jobs.view(session, store_jobs.job(session, removal_id))


def _add_merge(
    desk: Desk, session: Session, item: Item, *, shared: Mapping[str, Any], of: Mapping[str, Any], bandwidth: int
) -> None:
    line = {"id": item.merge_id, "kind": "merge", "disk_id": item.plan.disk_id, "end": item.plan.copy}
    store_jobs.add(session, **shared, **of, **line, step="waiting", body_hash="")
    plan = item.plan
    store_jobs.add_merge(
        session,
        id=item.merge_id,
        removal_id=of["parent_id"],
        vm_id=plan.vm_id,
        disk_id=plan.disk_id,
        snapshot_id=shared["snapshot_id"],
        base_id=plan.base_id,
        top_id=plan.top_id,
        child_id=plan.child_id,
        host_id=item.host_id,
        domain_id=item.domain["id"],
        domain_path=item.domain["path"],
        reserve=desk.settings.reserve(item.domain["total"]),
        bandwidth=bandwidth,
    )
    jobs.tell(session, store_jobs.job(session, item.merge_id))


# -- places -----------------------------------------------------------------------------------------------


def let_in(desk: Desk, session: Session) -> None:
    """Start the flows of merges that wait, as far as the limits per host and per domain allow."""
    store_jobs.shut_gate(session)
    hosts, domains = store_jobs.taken(session, "host_id"), store_jobs.taken(session, "domain_id")
    for merge in store_jobs.waiting(session):
        host, domain = hosts.get(merge.host_id, 0), domains.get(merge.domain_id, 0)
        if host >= desk.settings.merges_per_host or domain >= desk.settings.merges_per_domain:
            continue
        hosts[merge.host_id], domains[merge.domain_id] = host + 1, domain + 1
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
    changes = _changes(parts)
    if changes["state"] in jobs.ENDED:
        _finish(session, job, parts)
        changes |= {"finished_at": desk.now(), "result": _result(session, removal_id, parts)}
    job = store_jobs.change(session, removal_id, **changes, **jobs.sums(parts), told_at=desk.now())
    jobs.tell(session, job)
    done = sum(part.state == "done" for part in parts)
    sentence = f"removal of {job.snapshot_id}: is {job.state}, {done} of {len(parts)} disks are merged"
    if job.state != before:
        after_commit(session, lambda: _log.info(sentence, flow_id=removal_id, state=job.state))


def _changes(parts: list[JobRow]) -> dict[str, Any]:
    """Running while anything moves; stuck when only a person can go on; done when all of it is gone."""
    states = {part.state for part in parts}
    first = next((part for part in parts if part.state == "stuck"), None)
    if states & set(store_jobs.BUSY):
        return {"state": "running", "reason": None, "action": None}
    if first is not None:
        return {"state": "stuck", "reason": first.reason, "action": first.action}
    failed = next((part for part in parts if part.state == "undone"), None)
    if failed is None:
        return {"state": "done", "reason": None, "action": None, "past": True}
    return {"state": "undone", "reason": failed.reason, "action": None}


def _finish(session: Session, job: JobRow, parts: list[JobRow]) -> None:
    """The snapshot goes, or stays with the disks that could not be removed."""
    store.unlock(session, job.id)
    if job.snapshot_id is None:
        return
    if not store.disks_of(session, job.snapshot_id):
        store.delete_snapshot(session, job.snapshot_id)
        return
    some = any(part.state == "done" for part in parts)
    changes: dict[str, Any] = {"partly_removed": True, "restorable": False} if some else {}
    if not some and _came_to_nothing(store_jobs.kept(session, job.id)):
        changes = {"restorable": True}
    store.change_snapshot(session, job.snapshot_id, state="ok", job_id=None, **changes)


def _came_to_nothing(kept: list[dict[str, Any]]) -> bool:
    """Of all merges that were planned: they took the snapshot's restorability away, and none has copied anything."""
    return any(data.get("marked") for data in kept) and all(data.get("whole") for data in kept)


def _result(session: Session, removal_id: str, parts: list[JobRow]) -> dict[str, Any]:
    merges = {row.id: row for row in store_jobs.merges_of(session, removal_id)}
    items: list[dict[str, Any]] = [
        {
            "merge_id": part.id,
            "disk_id": part.disk_id,
            "state": part.state,
            "reason": jobs.reason(part.reason),
            "bytes_merged": merges[part.id].bytes_merged,
            "bytes_returned": merges[part.id].bytes_returned,
        }
        for part in parts
    ]
    sums = {key: sum(item[key] for item in items) for key in ("bytes_merged", "bytes_returned")}
    return {**sums, "items": items}


# -- what a person asks for while it goes on --------------------------------------------------------------


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
        store.unlock(session, merge.removal_id, merge.disk_id)
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
