"""What is watched while a merge copies: who works, the space that is left, and whether it gets nearer to its end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from chassis import logs
from chassis.steps import Failed, Flow
from contracts import errors
from services.snapshots import chain, jobs, pace, store_jobs
from services.snapshots.desk import Desk
from services.snapshots.facts import DiskFacts, Job
from services.snapshots.pace import Pace
from services.snapshots.store_jobs import MergeRow

# Answers to `start_commit` after which nothing was copied: what they name was in the chain before any ask, and the
# agent looks for it before it asks QEMU. No others: a HypervisorRefused is libvirt's word, ForeignJob and ChainDiffers
# say that somebody else works on the volumes, and what passes (storage, VM) may follow a job that had begun.
UNTOUCHED = frozenset(kind.code for kind in (errors.BackingOutside, errors.BackingTooLong, errors.VolumeInUse))
_log = logs.get("snapshots")


def worker(flow: Flow, row: MergeRow, job: Job | None) -> None:
    """Write down that somebody works on the disk, and whether it is us: a merge that turns back asks for it
    (chain.whole)."""
    if job is None:
        return
    if not flow.data.get("seen"):
        flow.save(seen=True)
    if not chain.ours(row.plan, job) and not flow.data.get("foreign"):
        flow.save(foreign=True)


@contextlib.contextmanager
def counted(flow: Flow) -> Iterator[None]:
    """Write an ask for the copy down before it is made, and whether its answer proves that nothing was copied."""
    flow.save(asked=int(flow.data.get("asked") or 0) + 1)
    try:
        yield
    except errors.Problem as problem:
        if problem.code in UNTOUCHED:
            flow.save(untouched=int(flow.data.get("untouched") or 0) + 1)
        raise


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
