"""Long work on the terminal: a bar while a job goes on, and its end as an answer or an error."""

from __future__ import annotations

import sys
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from client import errors, facts, show, units
from client.session import Session


def to_the_end(session: Session, job: facts.Job, timeout: float | None = None) -> facts.Job:
    """Wait for a job. Raises JobFailed, JobStuck, JobSlow with what the job says."""
    last = job
    with _Bar(job["description"] or job["kind"]) as bar:
        for last in session.client.watch(job["id"], timeout):
            bar.show(last)
    return _verdict(last)


def _verdict(job: facts.Job) -> facts.Job:
    if job["state"] == "done":
        return job
    reason = job["reason"] or {"message": "It says no reason.", "hint": ""}
    if job["state"] == "stuck":
        hint = f"{job['action'] or reason['hint']} Then: drystone job resume {job['id']}"
        raise errors.JobStuck(f"The job {job['id']} needs a person at {job['step']}: {reason['message']}", hint.strip())
    raise errors.JobFailed(f"The job {job['id']} was undone: {reason['message']}", str(reason["hint"]))


class _Bar:
    """A moving bar on a terminal; elsewhere one line per step. Both on standard error, beside the answer."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._step = ""
        self._out = show.console(stderr=True)
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
            self._progress = Progress(*columns, TimeElapsedColumn(), console=self._out, transient=True)
            self._task = self._progress.add_task(title, total=None, said="")

    def __enter__(self) -> _Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, job: facts.Job) -> None:
        if self._progress:
            cur, end = job["progress"]["cur"], job["progress"]["end"]
            self._progress.update(self._task, total=end or None, completed=cur, said=said(job))
        elif job["step"] != self._step or job["state"] in ("done", "undone", "stuck"):
            self._out.print(f"{self._title}: {said(job)}", markup=False)
        self._step = job["step"]


def said(job: dict[str, Any] | facts.Job) -> str:
    """'merge 1.2 GiB of 4.0 GiB, 310.0 MiB/s'"""
    progress = job["progress"]
    parts = [job["state"] if job["state"] != "running" else job["step"]]
    if progress["end"]:
        parts.append(f"{units.human(progress['cur'])} of {units.human(progress['end'])}")
        if progress["rate"]:
            parts.append(units.rate(progress["rate"]))
    return ", ".join(parts)
