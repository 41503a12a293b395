"""What is watched while a merge copies: the space that is left, and whether it gets nearer to its end."""

from __future__ import annotations

import dataclasses

from chassis import logs
from chassis.steps import Failed, Flow
from services.snapshots import chain, jobs, pace, store_jobs
from services.snapshots.desk import Desk
from services.snapshots.facts import DiskFacts
from services.snapshots.pace import Pace
from services.snapshots.store_jobs import MergeRow

_log = logs.get("snapshots")


def space(desk: Desk, flow: Flow, row: MergeRow, facts: DiskFacts) -> None:
    """Stop the copy before the reserve is touched: a commit does not pause on a full disk, it fails, and then every
    guest on the domain pauses. Raises Failed."""
    with desk.db.read() as session:
        rate = store_jobs.job(session, flow.id).rate
    problem = chain.filling(row.plan, row.domain_id, facts, rate, row.reserve)
    if problem is not None:
        raise Failed(problem)


def speed(desk: Desk, flow: Flow, row: MergeRow, left: int) -> None:
    """Notice a guest that writes at least as fast as its disk is copied: such a merge never ends by itself."""
    if not row.plan.active:
        return
    now, window = desk.now(), desk.settings.behind_seconds
    had = Pace(**flow.data["pace"]) if flow.data.get("pace") else None
    found = pace.judge(had, left, now.timestamp(), window, chain.GAP)
    if found == had:
        return
    with flow.write() as session:
        new = jobs.pace(session, flow.id, now, behind=found.behind)
    flow.save(pace=dataclasses.asdict(found))
    if new:
        words = f"has not come nearer to its end for {window:g} s" if found.behind else "gets nearer to its end again"
        _log.warning(f"merge of {row.disk_id}: {words}", flow_id=flow.id, left=left, bandwidth=row.bandwidth)
