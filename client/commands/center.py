"""drystone data-center, drystone cluster"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client import names
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, Said

data_centers = typer.Typer(no_args_is_help=True, help="Data centers: what shares storage and a MAC pool.")
clusters = typer.Typer(no_args_is_help=True, help="Clusters: hosts that VMs may run on.")

Which = Annotated[str, typer.Argument(help="Name or id.")]
Id = Annotated[str | None, typer.Option("--id", help="The id it gets (a UUID); asking twice then asks once.")]
Description = Annotated[str, typer.Option("--description", "-d")]
NewName = Annotated[str | None, typer.Option("--name", help="New name.")]
NewDescription = Annotated[str | None, typer.Option("--description", "-d", help="New description.")]
InDataCenter = Annotated[str | None, typer.Option("--data-center", help="Only those of this data center.")]
Leases = Annotated[bool | None, typer.Option(help="VMs take a sanlock lease at every start.")]


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were named on the command line."""
    return {name: value for name, value in fields.items() if value is not None}


@verb(data_centers, "list")
def list_data_centers(session: Session) -> Answer:
    """List data centers."""
    columns = (Column("NAME", "name"), Column("MACS FROM", "mac_first"), Column("TO", "mac_last"), Column("ID", "id"))
    empty = "No data center yet. Make one: drystone data-center create NAME"
    return Listing(list(session.client.data_centers.all()), columns, empty)


@verb(data_centers, "show")
def show_data_center(session: Session, which: Which) -> Answer:
    """Show a data center."""
    return Card(names.find(session.client, names.DATA_CENTER, which))


@verb(data_centers, "create")
def create_data_center(
    session: Session,
    *,
    name: Annotated[str, typer.Argument()],
    description: Description = "",
    mac_first: Annotated[str | None, typer.Option(help="First address of the MAC pool.")] = None,
    mac_last: Annotated[str | None, typer.Option(help="Last address of the MAC pool.")] = None,
    leases: Leases = None,
    io_timeout: Annotated[int | None, typer.Option(help="sanlock's io_timeout in seconds, once for ever.")] = None,
    id: Id = None,
) -> Answer:
    """Make a data center."""
    lease_wishes = {"leases": leases, "io_timeout": io_timeout}
    body = given(name=name, description=description, mac_first=mac_first, mac_last=mac_last, **lease_wishes)
    return Card(session.client.data_centers.create(body, id))


@verb(data_centers, "change")
def change_data_center(
    session: Session, which: Which, name: NewName = None, description: NewDescription = None, leases: Leases = None
) -> Answer:
    """Change a data center."""
    row = names.find(session.client, names.DATA_CENTER, which)
    body = given(name=name, description=description, leases=leases)
    return Card(session.client.data_centers.change(row["id"], row["version"], body))


@verb(data_centers, "delete")
def delete_data_center(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Delete a data center in which nothing is left."""
    row = names.find(session.client, names.DATA_CENTER, which)
    session.confirm(f"The data center {row['name']} with its MAC pool will be deleted.", yes)
    session.client.data_centers.delete(row["id"], row["version"])
    return Said(f"Deleted {row['name']}.", {"id": row["id"]})


@verb(clusters, "list")
def list_clusters(session: Session, data_center: InDataCenter = None) -> Answer:
    """List clusters."""
    client = session.client
    center = names.find_id(client, names.DATA_CENTER, data_center) if data_center else None
    rows = list(client.clusters.all(data_center_id=center))
    of = names.labels(client, names.DATA_CENTER, (row["data_center_id"] for row in rows))
    columns = (Column("NAME", "name"), Column("DATA CENTER", lambda row: of[row["data_center_id"]]), Column("ID", "id"))
    return Listing(rows, columns, "No cluster yet. Make one: drystone cluster create NAME --data-center NAME")


@verb(clusters, "show")
def show_cluster(session: Session, which: Which) -> Answer:
    """Show a cluster."""
    return Card(names.find(session.client, names.CLUSTER, which))


@verb(clusters, "create")
def create_cluster(
    session: Session,
    *,
    name: Annotated[str, typer.Argument()],
    data_center: Annotated[str, typer.Option("--data-center", help="Name or id.")],
    description: Description = "",
    id: Id = None,
) -> Answer:
    """Make a cluster."""
    center = names.find_id(session.client, names.DATA_CENTER, data_center)
    body = {"name": name, "data_center_id": center, "description": description}
    return Card(session.client.clusters.create(body, id))


@verb(clusters, "change")
def change_cluster(session: Session, which: Which, name: NewName = None, description: NewDescription = None) -> Answer:
    """Change a cluster."""
    row = names.find(session.client, names.CLUSTER, which)
    body = given(name=name, description=description)
    return Card(session.client.clusters.change(row["id"], row["version"], body))


@verb(clusters, "delete")
def delete_cluster(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Delete a cluster in which nothing is left."""
    row = names.find(session.client, names.CLUSTER, which)
    session.confirm(f"The cluster {row['name']} will be deleted.", yes)
    session.client.clusters.delete(row["id"], row["version"])
    return Said(f"Deleted {row['name']}.", {"id": row["id"]})
