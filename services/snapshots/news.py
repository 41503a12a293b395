"""What is done with news of hosts and of inventory; each in the transaction of its inbox row."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from services.snapshots import jobs, store, store_jobs, store_overview
from services.snapshots.desk import Desk


def job_changed(desk: Desk, session: Session, told: dict[str, Any]) -> None:
    """A block job moved: show it, and when it ended or is ready let the flow look at once. News decide nothing."""
    merge = store_jobs.merging(session, told["host_id"], told["disk_id"])
    if merge is None:
        return
    row = store_jobs.job(session, merge.id)
    moving = told["status"] in ("running", "ready")
    # news come out of order, and the last ones of a job that is gone may say 0
    if moving and (told["cur"] >= row.cur or told["end"] != row.end):
        jobs.progress(session, merge.id, desk.now(), cur=told["cur"], end=told["end"], rate=told["rate"])
    if told["status"] != "running":
        desk.runner.wake(merge.id, session)


def vm_changed(desk: Desk, session: Session, told: dict[str, Any]) -> None:
    """A VM started, stopped or paused: its flows look at once."""
    for flow_id in store_jobs.working_on(session, told["vm_id"]):
        desk.runner.wake(flow_id, session)


def vm_named(_desk: Desk, session: Session, told: dict[str, Any]) -> None:
    """The overview shows VMs by their names."""
    store_overview.name_vms(session, {told["id"]: told["name"]})


def vm_deleted(_desk: Desk, session: Session, told: dict[str, Any]) -> None:
    store.vm_deleted(session, told["id"])


def disk_changed(_desk: Desk, session: Session, told: dict[str, Any]) -> None:
    store.disk_changed(session, told)


def disk_deleted(_desk: Desk, session: Session, told: dict[str, Any]) -> None:
    store.disk_deleted(session, told["id"])
