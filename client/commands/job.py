"""drystone job, drystone merge"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client import follow, names
from client.commands.center import Which
from client.commands.disk import size_of
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, bytes_of, time_of

jobs = typer.Typer(no_args_is_help=True, help="Jobs: long work and how far it is.")
merges = typer.Typer(no_args_is_help=True, help="Merges: the parts of a removal, one or more for each disk.")

STEPS = (Column("STEP", "name"), Column("STATE", "state"))


@verb(jobs, "list")
def list_jobs(
    session: Session,
    *,
    vm: Annotated[str | None, typer.Option(help="Only those of this VM.")] = None,
    state: Annotated[str | None, typer.Option(help="running, undoing, done, undone or stuck.")] = None,
) -> Answer:
    """List jobs, the newest ones last."""
    client = session.client
    of = names.find_id(client, names.VM, vm) if vm else None
    rows = list(client.jobs.all(vm_id=of, state=state))
    vms = names.labels(client, names.VM, (row["vm_id"] for row in rows))
    columns = (
        Column("KIND", "kind"),
        Column("VM", lambda row: vms.get(row["vm_id"], "several")),
        Column("DESCRIPTION", "description"),
        Column("STATE", "state"),
        Column("PROGRESS", _progress),
        Column("BEGUN", time_of("created_at")),
        Column("WHO", "user"),
        Column("ID", "id"),
    )
    return Listing(rows, columns, "No job.")


def _progress(row: dict[str, Any]) -> str:
    if row["state"] in ("undone", "stuck") and row["reason"]:
        return str(row["reason"]["message"])
    return follow.said(row)


@verb(jobs, "show")
def show_job(session: Session, which: Which) -> Answer:
    """Show a job with its steps."""
    row = names.find(session.client, names.JOB, which)
    return Card(row, extra=(Listing(row["steps"], STEPS, "It has no steps."), *filter(None, [follow.way_out(row)])))


@verb(jobs, "wait")
def wait_for_job(
    session: Session,
    *,
    which: Which,
    timeout: Annotated[float | None, typer.Option(help="Seconds; without end by default.")] = None,
) -> Answer:
    """Follow a job to its end."""
    job: Any = names.find(session.client, names.JOB, which)
    return Card(follow.to_the_end(session, job, timeout))


@verb(jobs, "cancel")
def cancel_job(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Cancel a job. Past its point of no return it goes on."""
    row = names.find(session.client, names.JOB, which)
    session.confirm(f"What {row['description'] or row['kind']} has done so far will be undone.", yes)
    return Card(session.client.cancel_job(row["id"]))


@verb(jobs, "resume")
def resume_job(session: Session, which: Which) -> Answer:
    """Let a stuck job go on, after what its action says was done."""
    return Card(session.client.resume_job(names.find_id(session.client, names.JOB, which)))


@verb(jobs, "limit")
def limit_job(
    session: Session,
    *,
    which: Which,
    bandwidth: Annotated[int, typer.Argument(parser=size_of, metavar="RATE", help="Per second; 0: no limit.")],
) -> Answer:
    """Limit the rate of a job."""
    return Card(session.client.limit_job(names.find_id(session.client, names.JOB, which), bandwidth))


@verb(merges, "list")
def list_merges(
    session: Session,
    *,
    removal: Annotated[str | None, typer.Option(help="Only those of this removal (a job).")] = None,
    disk: Annotated[str | None, typer.Option(help="Only those of this disk.")] = None,
) -> Answer:
    """List merges."""
    client = session.client
    of = names.find_id(client, names.JOB, removal) if removal else None
    on = names.find_id(client, names.DISK, disk) if disk else None
    rows = list(client.merges.all(removal_id=of, disk_id=on))
    disks = names.labels(client, names.DISK, (row["disk_id"] for row in rows))
    columns = (
        Column("DISK", lambda row: disks[row["disk_id"]]),
        Column("KIND", "kind"),
        Column("LAYERS", "layers", right=True),
        Column("STATE", "state"),
        Column("STEP", "step"),
        Column("MERGED", bytes_of("bytes_merged"), right=True),
        Column("RETURNED", bytes_of("bytes_returned"), right=True),
        Column("STALL MS", _stall, right=True),
        Column("ID", "id"),
    )
    return Listing(rows, columns, "No merge.")


def _stall(row: dict[str, Any]) -> str | None:
    return f"{sum(row['stall'].values()):.1f}" if row["stall"] else None


@verb(merges, "show")
def show_merge(session: Session, which: Which) -> Answer:
    """Show a merge."""
    return Card(names.find(session.client, names.MERGE, which), sizes=("bytes_merged", "bytes_returned"))
