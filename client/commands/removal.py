"""drystone removal, and what `drystone snapshot remove` needs of it"""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import typer

from client import errors, facts, follow, names, units
from client.api import Client
from client.commands.center import Which
from client.commands.disk import size_of
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, bytes_of

removals = typer.Typer(no_args_is_help=True, help="Removals: many snapshots in one request.")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and begin nothing.")]


@verb(removals, "show")
def show_removal(session: Session, which: Which) -> Answer:
    """Show a removal: its plan, and what became of each part."""
    return shown(session.client, session.client.removal(_id(session, which)))


@verb(removals, "watch")
def watch_removal(
    session: Session,
    *,
    which: Which,
    timeout: Annotated[float | None, typer.Option(help="Seconds; without end by default.")] = None,
) -> Answer:
    """Follow a removal to its end."""
    return followed(session, session.client.removal(_id(session, which)), timeout)


@verb(removals, "cancel")
def cancel_removal(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Cancel what a removal has not done yet. What is past its point of no return goes on."""
    removal = session.client.removal(_id(session, which))
    session.confirm(f"What {removal['description']!r} has not done yet will not be done.", yes)
    return shown(session.client, session.client.cancel_removal(removal["id"]))


@verb(removals, "retry")
def retry_removal(
    session: Session,
    *,
    which: Which,
    dry_run: DryRun = False,
    bandwidth: Annotated[int, typer.Option(parser=size_of, metavar="RATE", help="Per second, like 100MiB.")] = 0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end, or only begin it.")] = True,
    key: Annotated[str | None, typer.Option("--key", help="Idempotency key: asking again asks once.")] = None,
) -> Answer:
    """Remove what a removal that has ended has left: what failed, was cancelled, or was refused."""
    client, of = session.client, _id(session, which)
    if dry_run:
        return shown(client, client.retry_removal(of, {"dry_run": True}))
    begun = client.retry_removal(of, {"bandwidth": bandwidth}, key)
    return followed(session, begun) if wait else shown(client, begun)


def _id(session: Session, which: str) -> str:
    return names.find_id(session.client, names.JOB, which)


# -- what a person names ----------------------------------------------------------------------------------


def chosen(client: Client, which: list[str], vm_id: str | None, disk: str | None) -> dict[str, Any]:
    """The body of a request that names snapshots, or one disk of each. Raises NotFound, Ambiguous."""
    ids = [names.find_id(client, names.SNAPSHOT, word, vm_id=vm_id) for word in which]
    if disk is None:
        return {"snapshots": ids}
    disk_id = names.find_id(client, names.DISK, disk, vm_id=vm_id)
    return {"disk_snapshots": [{"snapshot_id": id, "disk_id": disk_id} for id in ids]}


def filtered(*, older_than: str | None, **conditions: str | None) -> dict[str, Any]:
    """The body of a request with a filter. Raises BadSettings."""
    made: dict[str, Any] = {name: value for name, value in conditions.items() if value is not None}
    if older_than is not None:
        try:
            taken_before = datetime.datetime.now(datetime.UTC) - units.age(older_than)
        except (ValueError, OverflowError) as fault:
            raise errors.BadSettings(f"{fault}.", "Like: --older-than 30d") from None
        made["taken_before"] = taken_before.strftime("%Y-%m-%dT%H:%M:%SZ")
    if not made:
        hint = "Name them, or say which: --vm, --domain, --older-than, --text."
        raise errors.BadSettings("No snapshot was named, and no filter.", hint)
    return {"filter": made}


def found(client: Client, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The body of a request that names what a filter matches now, and how many snapshots these are: what a person is
    asked about is what goes, whatever matches later."""
    plan = client.remove_snapshots({**body, "dry_run": True})
    pairs = [{"snapshot_id": item["snapshot_id"], "disk_id": item["disk_id"]} for item in plan["items"]]
    if "domain_id" in body["filter"]:
        return {"disk_snapshots": pairs}, plan["snapshot_count"]
    return {"snapshots": list(dict.fromkeys(pair["snapshot_id"] for pair in pairs))}, plan["snapshot_count"]


# -- how it looks -----------------------------------------------------------------------------------------


def followed(session: Session, begun: facts.Removal, timeout: float | None = None) -> Answer:
    """Wait for its job. Raises JobFailed, JobStuck, JobSlow; what failed is told before."""
    client = session.client
    try:
        follow.to_the_end(session, client.jobs.get(begun["id"]), timeout)
    except errors.JobFailed:
        for item in client.removal(begun["id"])["items"]:
            if item["state"] != "done" and item["reason"]:
                session.tell(f"{item['description'] or item['snapshot_id']}: {item['reason']['message']}")
        session.tell(f"What is left can be removed again: drystone removal retry {begun['id']}")
        raise
    return shown(client, client.removal(begun["id"]))


def shown(client: Client, removal: facts.Removal) -> Answer:
    """The removal as a card, its merges in their order, the sums of each domain, and what did not come off."""
    disks = names.labels(client, names.DISK, (merge["disk_id"] for merge in removal["merges"]))
    domains = names.labels(client, names.DOMAIN, (domain["domain_id"] for domain in removal["domains"]))
    sizes = (
        Column("TO COPY", bytes_of("bytes_to_copy"), right=True),
        Column("NEEDED", bytes_of("space_needed"), right=True),
        Column("COMES BACK", bytes_of("space_returned"), right=True),
    )
    merges = (
        Column("DISK", lambda row: disks[row["disk_id"]]),
        Column("NO.", "position", right=True),
        Column("SNAPSHOTS", lambda row: len(row["snapshot_ids"]), right=True),
        Column("KIND", "kind"),
        *sizes,
        Column("STATE", "state"),
        Column("WHY", "why"),
    )
    by_domain = (
        Column("DOMAIN", lambda row: domains[row["domain_id"]]),
        Column("MERGES", "merges", right=True),
        *sizes,
    )
    left = [item for item in removal["items"] if item["reason"]]
    items = (
        Column("SNAPSHOT", lambda row: row["description"] or row["snapshot_id"]),
        Column("STATE", "state"),
        Column("REASON", lambda row: row["reason"]["message"]),
    )
    parts = [Listing(removal["merges"], merges, "Nothing would be merged."), Listing(removal["domains"], by_domain)]
    return Card(removal, extra=(*parts, *([Listing(left, items)] if left else [])))
