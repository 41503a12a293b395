"""drystone domain"""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import typer

from client import errors, names, overview, units
from client.api import Client
from client.commands import removal
from client.commands.center import Id, InDataCenter, Which
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, Said, bytes_of, time_of

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


# -- what lies on it --------------------------------------------------------------------------------------

_SNAPSHOTS = (
    Column("VM", "vm_name"),
    Column("DISK", "alias"),
    Column("SNAPSHOT", "description"),
    Column("TAKEN", time_of("taken_at")),
    Column("VOLUME MADE", time_of("made_at")),
    Column("SIZE", bytes_of("size"), right=True),
    Column("RETURNS", bytes_of("returns"), right=True),
    Column("DEPTH", lambda row: f"{row['depth']}/{row['layers']}", right=True),
    Column("STATE", "state"),
    Column("WHY NOT", "reason"),
    Column("SNAPSHOT ID", "snapshot_id"),
)
_SORTS = "taken_at, made_at, size, returns, depth, layers, vm_name, alias, description, state, reason"


@verb(domains, "snapshots")
def list_disk_snapshots(
    session: Session,
    *,
    which: Which,
    vm: Annotated[str | None, typer.Option(help="Only those of this VM.")] = None,
    text: Annotated[str | None, typer.Option(help="In the description, the disk's alias or the VM's name.")] = None,
    older_than: Annotated[str | None, typer.Option(help="12h, 30d, 2w.")] = None,
    min_size: Annotated[str | None, typer.Option(help="500M, 4GiB.")] = None,
    min_depth: Annotated[int | None, typer.Option(help="With at least so many volumes below.")] = None,
    state: Annotated[str | None, typer.Option(help="ok, creating, removing, busy or damaged.")] = None,
    removable: Annotated[bool | None, typer.Option(help="Only those that may be removed, or that may not.")] = None,
    sort: Annotated[str, typer.Option(help=f"{_SORTS}; a minus before it turns it round.")] = "-size",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Show at most so many.")] = 100,
    remove: Annotated[bool, typer.Option("--remove", help="Remove all that match, whatever the limit.")] = False,
    expect: Annotated[int | None, typer.Option(min=0, help="With --remove: how many should match.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --remove: show the plan and begin nothing.")] = False,
    yes: Yes = False,
) -> Answer:
    """List the disk snapshots on a storage domain, the largest first, and what their removal gives back at most."""
    client = session.client
    condition = {
        "vm_id": names.find_id(client, names.VM, vm) if vm is not None else None,
        "text": text,
        "taken_before": _before(older_than),
        "min_size": _read(units.size, min_size, "--min-size"),
        "min_depth": min_depth,
        "state": state,
        "removable": removable,
    }
    domain_id = names.find_id(client, names.DOMAIN, which)
    if remove:
        asked = {"domain_id": domain_id, **{name: value for name, value in condition.items() if value is not None}}
        return _removed(session, asked, expect, dry_run=dry_run, yes=yes)
    rows, page = _rows(client, domain_id, {**_query(condition), "sort": sort}, limit)
    _tell_sums(session, len(rows), page)
    return Listing(rows, _SNAPSHOTS, "No disk snapshot here is like that.")


def _query(condition: dict[str, Any]) -> dict[str, Any]:
    """The same in an address."""
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in condition.items()}


def _tell_sums(session: Session, shown: int, page: overview.DiskSnapshots) -> None:
    sums = f"{units.human(page['size'])}, at most {units.human(page['returns'])} come back"
    session.tell(f"{shown} of {page['total']} disk snapshots; all of them: {sums}. {_seen(page['scanned_at'])}")


def _removed(session: Session, listed: dict[str, Any], expect: int | None, *, dry_run: bool, yes: bool) -> Answer:
    """Remove what the list has now. The newest of it bounds the filter, and the count is sent along: a snapshot that is
    taken while a person thinks does not go with it."""
    client = session.client
    query = _query({name: value for name, value in listed.items() if name != "domain_id"})
    page = client.disk_snapshots(listed["domain_id"], **query, sort="-taken_at", limit=1)
    _tell_sums(session, page["total"], page)
    _refuse_surprise(page["total"], expect, needed=yes and not dry_run)
    if page["items"]:
        listed = {**listed, "taken_before": _just_after(page["items"][0]["taken_at"])}
    body = {"listed": listed, "expected_count": page["total"]}
    if dry_run:
        return removal.shown(client, client.remove_snapshots({**body, "dry_run": True}))
    session.confirm(f"The states that {page['total']} disk snapshot(s) keep cannot be returned to any more.", yes)
    return removal.followed(session, client.remove_snapshots(body))


def _just_after(moment: str) -> str:
    """Times have microseconds."""
    after = datetime.datetime.fromisoformat(moment) + datetime.timedelta(microseconds=1)
    return after.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _rows(client: Client, domain_id: str, query: dict[str, Any], limit: int) -> tuple[list[Any], Any]:
    """The first rows, and the page that they end with (its sums are of the whole filter)."""
    rows: list[Any] = []
    after: str | None = None
    while True:
        page = client.disk_snapshots(domain_id, **query, after=after, limit=min(1000, limit - len(rows)))
        rows += page["items"]
        after = page["next"]
        if after is None or len(rows) >= limit:
            return rows, page


def _refuse_surprise(total: int, expect: int | None, *, needed: bool) -> None:
    """Raises BadSettings: what is removed must be what somebody meant."""
    if needed and expect is None:
        raise errors.BadSettings("--yes with --remove needs --expect.", "See how many match with --dry-run.")
    if expect not in (None, total):
        raise errors.BadSettings(f"{total} match; {expect} were expected.", "Look at the list again, without --remove.")


@verb(domains, "leftovers")
def list_leftovers(session: Session, which: Which) -> Answer:
    """List chains that are too deep, and files that belong to no disk or snapshot, each with the action that helps."""
    domain_id = names.find_id(session.client, names.DOMAIN, which)
    page = session.client.leftovers(domain_id)
    rows: list[Any] = list(page["items"])
    while page["next"]:
        page = session.client.leftovers(domain_id, page["next"])
        rows += page["items"]
    session.tell(_seen(page["scanned_at"]))
    columns = (Column("WHAT", "message"), Column("SIZE", bytes_of("size"), right=True), Column("WHAT HELPS", "action"))
    return Listing(rows, columns, "Nothing odd is known here.")


@verb(domains, "rescan")
def rescan_domain(session: Session, which: Which) -> Answer:
    """Scan the storage and make the lists of its disk snapshots and leftovers anew. Changes nothing on the storage."""
    done = session.client.rebuild_overview(names.find_id(session.client, names.DOMAIN, which))
    found = f"{done['disk_snapshots']} disk snapshots of {done['disks']} disks, {done['leftovers']} leftovers"
    return Said(f"Scanned: {found}.", done)


def _before(age: str | None) -> str | None:
    found = _read(units.age, age, "--older-than")
    return None if found is None else (datetime.datetime.now(datetime.UTC) - found).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(reader: Any, text: str | None, option: str) -> Any:
    if text is None:
        return None
    try:
        return reader(text)
    except (ValueError, OverflowError) as fault:
        raise typer.BadParameter(str(fault), param_hint=option) from None


def _seen(moment: str | None) -> str:
    if moment is None:
        return "The storage was never scanned for this: drystone domain rescan"
    return f"The storage was scanned at {moment[:19].replace('T', ' ')} UTC."
