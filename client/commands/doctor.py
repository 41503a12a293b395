"""drystone doctor"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client import facts, names, session
from client.commands.center import Which
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, bytes_of

doctor = typer.Typer(no_args_is_help=True, help="What QEMU, the storage, libvirt and the database say, side by side.")

# As they are believed; the first one that knows is right.
VIEWS = (
    Column("VOLUME", lambda row: row["volume_id"] or row["path"]),
    Column("QEMU", "qemu"),
    Column("STORAGE", "storage"),
    Column("LIBVIRT", "libvirt"),
    Column("DATABASE", "database"),
    Column("SIZE", bytes_of("actual_size"), right=True),
    Column("SNAPSHOT", lambda row: row["description"] or row["snapshot_id"]),
)


@verb(doctor, "disk")
def diagnose_disk(
    session: Session,
    *,
    which: Which,
    repair: Annotated[bool, typer.Option("--repair", help="Make the database follow the storage.")] = False,
    adopt: Annotated[list[str] | None, typer.Option(help="An unknown volume that belongs to the disk.")] = None,
    discard: Annotated[list[str] | None, typer.Option(help="A volume in no chain, to be deleted for good.")] = None,
    yes: Yes = False,
) -> Answer:
    """Show a disk from every side, what differs, and what helps. Ends with 10 while something differs."""
    if (adopt or discard) and not repair:
        raise typer.BadParameter("--adopt and --discard go with --repair")
    found = session.client.diagnose_disk(names.find_id(session.client, names.DISK, which))
    if repair:
        found = _repair(session, found, adopt or [], discard or [], yes)
    return _verdict(session, found)


def _repair(
    session: Session, found: facts.Diagnosis, adopt: list[str], discard: list[str], yes: bool
) -> facts.Diagnosis:
    """What is repaired is what was shown: the diagnosis travels with the request."""
    plan = found["repair"]
    loses = [*plan["changes"], *(f"Storage: volume {id} is deleted for good." for id in discard)]
    if plan["possible"] and loses:
        session.confirm("\n".join(loses) + "\n", yes)
    done = session.client.repair_disk(found["disk_id"], found["digest"], adopt=adopt, discard=discard)
    for change in done["changes"] or ["There was nothing to repair."]:
        session.tell(change)
    return done["diagnosis"]


def _verdict(session: Session, found: facts.Diagnosis) -> Answer:
    session.ends = _ends(found["differences"])
    extra: list[Listing | str] = [Listing(found["rows"], VIEWS, "No side has any volume of it.")]
    extra += _said(found["differences"]) or ["All sides agree."]
    plan = found["repair"]
    if plan["changes"]:
        extra += [f"\nWhat drystone doctor disk {found['alias']} --repair would change:"]
        extra += [f"  {change}" for change in plan["changes"]]
    elif found["differences"] and plan["reason"]:
        extra += [f"\nNothing is repaired while this holds: {plan['reason']}"]
    return Card(found, extra=tuple(extra))


def _said(differences: Any) -> list[Listing | str]:
    lines: list[Listing | str] = []
    for one in differences:
        lines += [f"\n{one['code']}: {one['message']}", f"  {one['action']}"]
    return lines


def _ends(differing: Any) -> int:
    return session.DIFFERS if differing else session.OK


@verb(doctor, "domain")
def diagnose_domain(session: Session, which: Which) -> Answer:
    """Show every disk of a storage domain that differs, and what else lies there. Ends with 10 if there is anything."""
    domain = names.find_id(session.client, names.DOMAIN, which)
    found = session.client.diagnose_domain(domain)
    while found["next"]:
        page = session.client.diagnose_domain(domain, found["next"])
        found["items"] += page["items"]
        found["looked_at"] += page["looked_at"]
        found["next"] = page["next"]
    session.ends = _ends(found["items"] or found["findings"])
    rows = [{**row, **one} for row in found["items"] for one in row["differences"]]
    columns = (
        Column("DISK", lambda row: row["alias"] or row["disk_id"]),
        Column("REPAIR", "repairable"),
        Column("WHAT", "code"),
        Column("MESSAGE", "message"),
        Column("WHAT HELPS", "action"),
    )
    whole = (Column("WHAT", "code"), Column("MESSAGE", "message"), Column("WHAT HELPS", "action"))
    more = found["findings_total"] - len(found["findings"])
    return Card(
        found,
        extra=(
            Listing(rows, columns, "All sides agree about every disk."),
            Listing(found["findings"], whole, "Nothing else lies on the domain."),
            *([f"{more} more were found on it."] if more else []),
        ),
    )
