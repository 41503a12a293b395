"""drystone domain"""

from __future__ import annotations

from typing import Annotated

import typer

from client import names
from client.commands.center import Id, InDataCenter, Which
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, Said, bytes_of

domains = typer.Typer(no_args_is_help=True, help="Storage domains: directories that hold disks.")


@verb(domains, "list")
def list_domains(session: Session, data_center: InDataCenter = None) -> Answer:
    """List storage domains and their space."""
    client = session.client
    center = names.find_id(client, names.DATA_CENTER, data_center) if data_center else None
    columns = (
        Column("NAME", "name"),
        Column("STATE", "state"),
        Column("SIZE", bytes_of("total"), right=True),
        Column("FREE", bytes_of("free"), right=True),
        Column("PATH", "path"),
        Column("PROBLEM", "problem"),
        Column("ID", "id"),
    )
    empty = "No storage domain yet. Make one: drystone domain create NAME --data-center NAME --path DIRECTORY"
    return Listing(list(client.storage_domains.all(data_center_id=center)), columns, empty)


@verb(domains, "show")
def show_domain(session: Session, which: Which) -> Answer:
    """Show a storage domain."""
    return Card(names.find(session.client, names.DOMAIN, which), sizes=("total", "free"))


@verb(domains, "create")
def create_domain(
    session: Session,
    *,
    name: Annotated[str, typer.Argument()],
    data_center: Annotated[str, typer.Option("--data-center", help="Name or id.")],
    path: Annotated[str, typer.Option(help="An empty directory on the hosts.")],
    host: Annotated[str | None, typer.Option(help="Who writes the layout; any host by default.")] = None,
    id: Id = None,
) -> Answer:
    """Make a storage domain in an empty directory."""
    client = session.client
    body = {
        "name": name,
        "data_center_id": names.find_id(client, names.DATA_CENTER, data_center),
        "path": path,
        "host_id": names.find_id(client, names.HOST, host) if host else None,
    }
    return Card(client.storage_domains.create(body, id), sizes=("total", "free"))


@verb(domains, "delete")
def delete_domain(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Delete a storage domain that holds no disk."""
    client = session.client
    row = names.find(client, names.DOMAIN, which)
    disks = client.disks.page(limit=1, domain_id=row["id"]).total
    session.confirm(f"The storage domain {row['name']} under {row['path']} ({disks} disks) will be deleted.", yes)
    client.storage_domains.delete(row["id"], row["version"])
    return Said(f"Deleted {row['name']}.", {"id": row["id"]})
