"""Short requests: lists, one thing, the live chain, and what a person does to a job while it goes on."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from chassis import logs
from contracts import errors
from services.snapshots import jobs, peers, removal, store, store_jobs, store_removals
from services.snapshots.desk import Desk
from services.snapshots.store_jobs import JobRow

_log = logs.get("snapshots")
Body = dict[str, Any]


def get_snapshot(desk: Desk, request: Body) -> Body:
    with desk.db.read() as session:
        return store.snapshot(session, request["id"])


def list_snapshots(desk: Desk, request: Body) -> Body:
    with desk.db.read() as session:
        return store.list_snapshots(session, request)


def get_job(desk: Desk, request: Body) -> Body:
    with desk.db.read() as session:
        return jobs.view(session, store_jobs.job(session, request["id"]))


def list_jobs(desk: Desk, request: Body) -> Body:
    with desk.db.read() as session:
        rows, following, total = store_jobs.list_jobs(session, request)
        return {"items": [jobs.view(session, row) for row in rows], "next": following, "total": total}


def get_merge(desk: Desk, request: Body) -> Body:
    with desk.db.read() as session:
        merge = store_jobs.merge(session, request["id"])
        removes = store_removals.snapshots_of(session, [merge.id])[merge.id]
        return jobs.merge_view(merge, store_jobs.job(session, merge.id), removes)


def list_merges(desk: Desk, request: Body) -> Body:
    with desk.db.read() as session:
        rows, following, total = store_jobs.list_merges(session, request)
        removes = store_removals.snapshots_of(session, [merge.id for merge, _ in rows])
    items = [jobs.merge_view(merge, row, removes[merge.id]) for merge, row in rows]
    return {"items": items, "next": following, "total": total}


def check_idle(desk: Desk, request: Body) -> Body:
    with desk.db.read() as session:
        store.refuse_busy(session, request["id"])
    return {}


# -- the chain --------------------------------------------------------------------------------------------


def get_chain(desk: Desk, request: Body) -> Body:
    """The chain of the database beside what a host sees now; `facts` is null when nobody can be asked."""
    disk_id = request["disk_id"]
    try:
        disk: Body | None = desk.peers.disk(disk_id)
    except (errors.NoAnswer, errors.ServiceAway, errors.BusAway):
        disk = None
    with desk.db.read() as session:
        known = store.disk(session, disk_id)
        rows = store.chain_rows(session, disk_id) if known else []
    if known is None and disk is None:
        raise errors.NotFound(kind="disk", id=disk_id)
    if known is None and disk is not None:
        rows = [_first(disk)]
    facts = _facts(desk, disk) if disk is not None else None
    sizes = {row["volume_id"]: row["actual_size"] for row in facts["storage"]["volumes"]} if facts else {}
    rows = [row | {"actual_size": sizes.get(row["volume_id"], row["actual_size"])} for row in rows]
    vm_id = disk["vm_id"] if disk is not None else known.vm_id if known else None
    return {"disk_id": disk_id, "vm_id": vm_id, "volumes": rows, "facts": facts}


def _first(disk: Body) -> Body:
    empty = {"parent_id": None, "snapshot_id": None, "description": "", "active": True, "actual_size": None}
    return {"volume_id": disk["first_volume_id"], **empty}


def _facts(desk: Desk, disk: Body) -> Body | None:
    """What the VM's host sees, or for a VM that is down any host that is up; None when nobody can say."""
    try:
        domain = desk.peers.active_domain(disk["domain_id"])
        ref = peers.disk_ref(disk["id"], domain["id"], domain["path"])
        host_id = _host(desk, disk)
        return desk.peers.look_told(host_id, disk["vm_id"], ref) if host_id else None
    except errors.Problem as problem:
        _log.info(f"chain of {disk['id']}: no host could be asked: {problem}")
        return None


def _host(desk: Desk, disk: Body) -> str | None:
    if disk["vm_id"] is None:
        return None
    vm = desk.peers.vm(disk["vm_id"])
    if vm["host_id"]:
        return str(vm["host_id"])
    return next(iter(desk.peers.hosts_up(vm)), None) if vm["state"] == "down" else None


# -- what a person does to a job --------------------------------------------------------------------------


def cancel_job(desk: Desk, request: Body) -> Body:
    """Raises NotFound, TooLate. Cancelling a job that is undone, or being cancelled, changes nothing."""
    with desk.db.write() as session:
        job = store_jobs.job(session, request["id"])
        if job.state == "done":
            raise errors.TooLate(flow_id=job.id)
        if job.open:
            _cancel(desk, session, job)
        return jobs.view(session, store_jobs.job(session, job.id))


def _cancel(desk: Desk, session: Session, job: JobRow) -> None:
    if job.kind == "removal":
        removal.cancel(desk, session, job)
    elif job.kind == "merge":
        if not removal.cancel_merge(desk, session, job):
            raise errors.TooLate(flow_id=job.id)
    else:
        row = desk.runner.cancel(session, job.id)
        if row.cancel_by is not None and row.active:
            jobs.tell(session, store_jobs.change(session, job.id, cancelling=True))


def resume_job(desk: Desk, request: Body) -> Body:
    """Raises NotFound, FlowWrongState for a job that has ended."""
    with desk.db.write() as session:
        job = store_jobs.job(session, request["id"])
        if not job.open:
            raise errors.FlowWrongState(flow_id=job.id, state=job.state, action="resume", needs="stuck")
        if job.kind == "removal":
            removal.resume(desk, session, job)
        elif job.state == "stuck":
            desk.runner.resume(session, job.id)
        return jobs.view(session, store_jobs.job(session, job.id))


def limit_job(desk: Desk, request: Body) -> Body:
    """Raises NotFound for a job that copies nothing, TooLate for one that has ended."""
    with desk.db.read() as session:
        job = store_jobs.job(session, request["id"])
    if job.kind == "snapshot":
        raise errors.NotFound(kind="merge or removal", id=job.id)
    if not job.open:
        raise errors.TooLate(flow_id=job.id)
    removal.limit(desk, job, request["bandwidth"])
    return get_job(desk, {"id": job.id})
