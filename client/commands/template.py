"""drystone template"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client import follow, names, units
from client.commands import disk as disk_commands
from client.commands.center import Description, Id, Which
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, Said, bytes_of

templates = typer.Typer(no_args_is_help=True, help="Templates that virtual machines are made from.")


@verb(templates, "list")
def list_templates(
    session: Session, cluster: Annotated[str | None, typer.Option(help="Only those of this cluster.")] = None
) -> Answer:
    """List templates."""
    client = session.client
    inside = names.find_id(client, names.CLUSTER, cluster) if cluster else None
    columns = (
        Column("NAME", "name"),
        Column("STATE", "state"),
        Column("CPUS", "cpus", right=True),
        Column("MEMORY", bytes_of("memory"), right=True),
        Column("DISKS", lambda row: len(row["disks"]), right=True),
        Column("PROBLEM", "problem"),
        Column("ID", "id"),
    )
    rows = list(client.templates.all(cluster_id=inside))
    return Listing(rows, columns, "No template yet. Make one: drystone template create NAME --vm VM")


def _card(row: Any) -> Card:
    nics = (Column("NIC", "name"), Column("MODEL", "model"), Column("NETWORK", "network"))
    disks = Listing(row["disks"], disk_commands.COLUMNS, "It has no disk.")
    return Card(row, ("memory",), (Listing(row["nics"], nics, "It has no NIC."), disks))


@verb(templates, "show")
def show_template(session: Session, which: Which) -> Answer:
    """Show a template with its NICs and disks."""
    return _card(names.find(session.client, names.TEMPLATE, which))


@verb(templates, "create")
def create_template(
    session: Session,
    *,
    name: Annotated[str, typer.Argument()],
    vm: Annotated[str, typer.Option(help="Name or id of the VM; it must be down, and stays as it is.")],
    description: Description = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the copies, or only begin them.")] = True,
    id: Id = None,
) -> Answer:
    """Make a template: the hardware of a VM and a copy of its disks as they are now, without snapshots."""
    client = session.client
    body = {"name": name, "vm_id": names.find_id(client, names.VM, vm), "description": description}
    made = client.templates.create(body, id)
    return _card(follow.copies(session, client.templates, made) if wait else made)


@verb(templates, "delete")
def delete_template(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Delete a template with its disks. Refused while thin VMs stand on it."""
    row = names.find(session.client, names.TEMPLATE, which)
    size = units.human(sum(disk["capacity"] for disk in row["disks"]))
    session.confirm(f"The template {row['name']} with its disks ({size}) will be deleted for good.", yes)
    session.client.templates.delete(row["id"], row["version"])
    return Said(f"Deleted {row['name']}.", {"id": row["id"]})
