"""drystone snapshot"""

from __future__ import annotations

from typing import Annotated

import typer

from client import errors, follow, names, units
from client.commands import removal
from client.commands.center import Which
from client.commands.disk import size_of
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, time_of

snapshots = typer.Typer(no_args_is_help=True, help="Snapshots of virtual machines.")

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end, or only begin it.")]
Key = Annotated[str | None, typer.Option("--key", help="Idempotency key: asking again with it asks once.")]


@verb(snapshots, "list")
def list_snapshots(
    session: Session, vm: Annotated[str | None, typer.Option(help="Only those of this VM.")] = None
) -> Answer:
    """List snapshots, oldest first."""
    client = session.client
    of = names.find_id(client, names.VM, vm) if vm else None
    rows = list(client.snapshots.all(vm_id=of))
    vms = names.labels(client, names.VM, (row["vm_id"] for row in rows))
    columns = (
        Column("VM", lambda row: vms[row["vm_id"]]),
        Column("DESCRIPTION", "description"),
        Column("STATE", "state"),
        Column("TAKEN", time_of("created_at")),
        Column("DISKS", lambda row: len(row["disks"]), right=True),
        Column("SIZE", lambda row: units.human(sum(disk["actual_size"] or 0 for disk in row["disks"])), right=True),
        Column("QUIESCED", "quiesced"),
        Column("ID", "id"),
    )
    return Listing(rows, columns, "No snapshot. Take one: drystone snapshot create VM --description TEXT")


@verb(snapshots, "show")
def show_snapshot(session: Session, which: Which) -> Answer:
    """Show a snapshot and its disks. Name it by id, beginning of an id, or description."""
    row = names.find(session.client, names.SNAPSHOT, which)
    columns = (
        Column("DISK", "alias"),
        Column("SIZE", lambda disk: units.human(disk["actual_size"]), right=True),
        Column("VOLUME", "volume_id"),
    )
    return Card(row, extra=(Listing(row["disks"], columns),))


@verb(snapshots, "create")
def create_snapshot(
    session: Session,
    *,
    vm: Annotated[str, typer.Argument(help="Name or id.")],
    description: Annotated[str, typer.Option("--description", "-d")] = "",
    disk: Annotated[list[str] | None, typer.Option(help="Only these disks; all plugged ones by default.")] = None,
    quiesce: Annotated[str, typer.Option(help="auto, required or never.")] = "auto",
    wait: Wait = True,
    key: Key = None,
) -> Answer:
    """Take a snapshot of a VM, running or not."""
    client = session.client
    of = names.find_id(client, names.VM, vm)
    disks = [names.find_id(client, names.DISK, word, vm_id=of) for word in disk] if disk else None
    job = client.create_snapshot(of, {"description": description, "disk_ids": disks, "quiesce": quiesce}, key)
    return Card(follow.to_the_end(session, job) if wait else job)


@verb(snapshots, "delete")
def delete_snapshot(
    session: Session,
    *,
    which: Which,
    vm: Annotated[str | None, typer.Option(help="The VM, where the description alone is not enough.")] = None,
    bandwidth: Annotated[int, typer.Option(parser=size_of, metavar="RATE", help="Per second, like 100MiB.")] = 0,
    yes: Yes = False,
    wait: Wait = True,
    key: Key = None,
) -> Answer:
    """Remove a snapshot by merging its disks. The VM goes on running and loses nothing of its present."""
    client = session.client
    of = names.find_id(client, names.VM, vm) if vm else None
    row = names.find(client, names.SNAPSHOT, which, vm_id=of)
    title = row["description"] or row["id"]
    taken = row["created_at"][:19].replace("T", " ")
    session.confirm(
        f"The state of {len(row['disks'])} disk(s) at {taken} UTC (snapshot {title!r}) cannot be returned to any more.",
        yes,
    )
    job = client.remove_snapshot(row["id"], bandwidth, key)
    return Card(follow.to_the_end(session, job) if wait else job)


@verb(snapshots, "remove")
def remove_snapshots(
    session: Session,
    *,
    which: Annotated[list[str] | None, typer.Argument(help="Ids, beginnings of ids, or descriptions.")] = None,
    vm: Annotated[str | None, typer.Option(help="Of this VM.")] = None,
    domain: Annotated[str | None, typer.Option(help="Only disks on this storage domain.")] = None,
    disk: Annotated[str | None, typer.Option(help="Only this disk of the snapshots that are named.")] = None,
    older_than: Annotated[str | None, typer.Option(metavar="AGE", help="Taken so long ago: 12h, 30d, 8w.")] = None,
    text: Annotated[str | None, typer.Option(help="With this in the description.")] = None,
    expect: Annotated[int | None, typer.Option(min=0, help="How many snapshots the filter should match.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and begin nothing.")] = False,
    bandwidth: Annotated[int, typer.Option(parser=size_of, metavar="RATE", help="Per second, like 100MiB.")] = 0,
    yes: Yes = False,
    wait: Wait = True,
    key: Key = None,
) -> Answer:
    """Remove many snapshots: those that are named, or all that a filter matches. Neighbours go in one job."""
    client = session.client
    # an empty word is somebody's unset variable: it is looked for and not found, it does not widen the filter
    of = names.find_id(client, names.VM, vm) if vm is not None else None
    count = expect
    if which:
        if any(one is not None for one in (domain, older_than, text)):
            raise errors.BadSettings("Snapshots are named, and a filter is given.", "Give the one or the other.")
        body, count = removal.chosen(client, which, of, disk), len(which)
    else:
        if disk is not None:
            raise errors.BadSettings("--disk goes with named snapshots only.", "Name them, or filter by --domain.")
        on = names.find_id(client, names.DOMAIN, domain) if domain is not None else None
        body = removal.filtered(vm_id=of, domain_id=on, older_than=older_than, text=text)
        if expect is None and not (yes or dry_run):
            body, count = removal.found(client, body)
        else:
            body["expected_count"] = expect
    if dry_run:
        return removal.shown(client, client.remove_snapshots({**body, "dry_run": True}))
    session.confirm(f"The states that {count} snapshot(s) keep cannot be returned to any more.", yes)
    begun = client.remove_snapshots({**body, "bandwidth": bandwidth}, key)
    return removal.followed(session, begun) if wait else removal.shown(client, begun)
