"""drystone host"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client import names, units
from client.commands.center import Which
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, Said, time_of

hosts = typer.Typer(no_args_is_help=True, help="Hosts: machines on which an agent runs.")


@verb(hosts, "list")
def list_hosts(
    session: Session, cluster: Annotated[str | None, typer.Option(help="Only those of this cluster.")] = None
) -> Answer:
    """List hosts and how they are."""
    client = session.client
    inside = names.find_id(client, names.CLUSTER, cluster) if cluster else None
    rows = list(client.hosts.all(cluster_id=inside))
    of = names.labels(client, names.CLUSTER, (row["cluster_id"] for row in rows))
    columns = (
        Column("NAME", "name"),
        Column("STATE", "state"),
        Column("CLUSTER", lambda row: of[row["cluster_id"]]),
        Column("CPUS", lambda row: _fact(row, "cpus"), right=True),
        Column("MEMORY", lambda row: units.human(_fact(row, "memory")), right=True),
        Column("LAST SEEN", time_of("last_seen")),
        Column("PROBLEM", "problem"),
        Column("ID", "id"),
    )
    return Listing(rows, columns, "No host yet. Add one: drystone host create NAME --cluster NAME --id HOST-ID")


def _fact(row: dict[str, Any], name: str) -> Any:
    return (row.get("facts") or {}).get(name)


@verb(hosts, "show")
def show_host(session: Session, which: Which) -> Answer:
    """Show a host and what its agent says of it."""
    row = names.find(session.client, names.HOST, which)
    facts = [{"fact": name, "value": value} for name, value in (row["facts"] or {}).items()]
    spaces = Listing(
        row.get("lockspaces") or [],
        (Column("LOCKSPACE OF", "domain_id"), Column("STATE", "state"), Column("PROBLEM", "problem")),
        "In no lockspace.",
    )
    return Card(
        row,
        extra=(
            spaces,
            Listing(facts, (Column("FACT", "fact"), Column("VALUE", "value")), "Not heard yet."),
        ),
    )


@verb(hosts, "create")
def create_host(
    session: Session,
    *,
    name: Annotated[str, typer.Argument()],
    cluster: Annotated[str, typer.Option(help="Name or id.")],
    id: Annotated[str, typer.Option("--id", help="DRYSTONE_HOST_ID of the agent there.")],
) -> Answer:
    """Add a host by the id that its agent was given."""
    body = {"name": name, "cluster_id": names.find_id(session.client, names.CLUSTER, cluster), "id": id}
    return Card(session.client.hosts.create(body))


@verb(hosts, "delete")
def delete_host(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Forget a host on which nothing runs."""
    row = names.find(session.client, names.HOST, which)
    session.confirm(f"The host {row['name']} will be forgotten; its agent is not touched.", yes)
    session.client.hosts.delete(row["id"], row["version"])
    return Said(f"Forgot {row['name']}.", {"id": row["id"]})
