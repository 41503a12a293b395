"""Long work on the terminal: a bar while a job goes on, and its end as an answer or an error."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from client import errors, facts, show, units
from client.api import ENDED, Copied, Made
from client.session import Session


def to_the_end(session: Session, job: facts.Job, timeout: float | None = None) -> facts.Job:
    """Wait for a job. Raises JobFailed, JobStuck, JobSlow with what the job says."""
    last = job
    with _Bars(session, job) as bars:
        for last in session.client.watch(job["id"], timeout):
            bars.show(last)
        bars.conclude(last)
    return _verdict(last)


def _verdict(job: facts.Job) -> facts.Job:
    if job["state"] == "done":
        return job
    reason = job["reason"] or {"message": "It says no reason.", "hint": ""}
    if job["state"] == "stuck":
        hint = f"{job['action'] or reason['hint']} Then: drystone job resume {job['id']}"
        raise errors.JobStuck(f"The job {job['id']} needs a person at {job['step']}: {reason['message']}", hint.strip())
    raise errors.JobFailed(f"The job {job['id']} was undone: {reason['message']}", str(reason["hint"]))


MOST_BARS = 16  # more than that is no picture any more


class _Bars:
    """A moving bar for each disk on a terminal; elsewhere one line per step. On standard error, beside the answer."""

    def __init__(self, session: Session, job: facts.Job) -> None:
        self._client = session.client
        self._title = job["description"] or job["kind"]
        self._step = ""
        self._behind = False
        self._out = show.console(stderr=True)
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
            self._progress = Progress(*columns, TimeElapsedColumn(), console=self._out)

    def __enter__(self) -> _Bars:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, job: facts.Job) -> None:
        if self._progress:
            for id, title, row in self._rows(job):
                if id not in self._bars:
                    self._bars[id] = self._progress.add_task(title, total=None, said="")
                cur, end = row["progress"]["cur"], row["progress"]["end"]
                self._progress.update(self._bars[id], total=end or None, completed=cur, said=said(row))
        elif job["step"] != self._step or job["state"] in ENDED:
            self._out.print(f"{self._title}: {said(job)}", markup=False)
        if way_out(job) and not self._behind:
            self._out.print(f"{self._title}: {way_out(job)}", markup=False)
        self._step, self._behind = job["step"], bool(way_out(job))

    def conclude(self, job: facts.Job) -> None:
        """What it came to: the space that came back."""
        result = job["result"] or {}
        if result.get("bytes_merged") is not None:
            merged, back = units.human(result["bytes_merged"]), units.human(result.get("bytes_returned") or 0)
            self._out.print(f"{self._title}: {merged} merged, {back} came back on the storage.", markup=False)

    def _rows(self, job: facts.Job) -> Iterator[tuple[str, str, Any]]:
        """A removal shows its merges, unless they are too many for a screen; other work shows itself."""
        merges = list(self._client.merges.all(removal_id=job["id"])) if job["kind"] == "removal" else []
        if not 0 < len(merges) <= MOST_BARS:
            merges = []
            yield job["id"], self._title, job
        for merge in merges:
            yield merge["id"], f"{self._title}, disk {self._alias(merge['disk_id'])}", merge

    @functools.cache  # noqa: B019  one object a command
    def _alias(self, disk_id: str) -> str:
        return self._client.disks.get(disk_id)["alias"]


def way_out(job: dict[str, Any] | facts.Job | facts.Merge) -> str:
    """What to do about a merge that never ends by itself; empty for others."""
    if not job["progress"].get("behind"):
        return ""
    id = job["id"]
    return (
        "It does not get nearer to its end: the guest writes at least as fast as it is copied. "
        f"`drystone job limit {id} 0` lifts its limit; without one, wait until the guest writes less, or "
        f"`drystone job cancel {id}`. Nothing is lost."
    )


def said(job: dict[str, Any] | facts.Job | facts.Merge) -> str:
    """'merge 1.2 GiB of 4.0 GiB, 310.0 MiB/s'"""
    progress = job["progress"]
    parts = [job["state"] if job["state"] != "running" else job["step"]]
    if progress["end"]:
        parts.append(f"{units.human(progress['cur'])} of {units.human(progress['end'])}")
        if progress["rate"]:
            parts.append(units.rate(progress["rate"]))
    if progress.get("offline"):
        parts.append("the VM is down and does not start before it has ended")
    if progress.get("behind"):
        parts.append("the guest writes as fast as it is copied")
    return ", ".join(parts)


# -- copies -----------------------------------------------------------------------------------------------


def copies(session: Session, of: Made[Copied], row: Copied, timeout: float | None = None) -> Copied:
    """Wait until the disks of a new template or VM are made. Raises JobFailed with what a disk says, JobSlow."""
    last, said = row, ""
    out = show.console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, TimeElapsedColumn(), console=out, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(f"Copying the disks of {row['name']}", total=None, said="")
        for last in session.client.watch_copies(row["id"], of, timeout):
            copied = sum(disk["copied"] or 0 for disk in last["disks"])
            total = sum(disk["to_copy"] or 0 for disk in last["disks"])
            said = f"{units.human(copied)} of at most {units.human(total)}" if total else ""
            progress.update(bar, total=total or None, completed=copied, said=said)
    failed = next((disk for disk in last["disks"] if disk["state"] != "ok"), None)
    if failed is not None:
        hint = f"Mend the reason and repeat the command with --id {row['id']}, or delete {row['name']}."
        raise errors.JobFailed(f"The disk {failed['alias']} of {row['name']} was not made: {failed['problem']}", hint)
    if said and not sys.stderr.isatty():
        out.print(f"{row['name']}: {said} copied", markup=False)
    return last
