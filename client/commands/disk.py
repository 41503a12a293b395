"""drystone disk"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client import names, units
from client.commands.center import Id, Which
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, Said, bytes_of

disks = typer.Typer(no_args_is_help=True, help="Disks and their chains of volumes.")

COLUMNS = (
    Column("ALIAS", "alias"),
    Column("STATE", "state"),
    Column("CAPACITY", bytes_of("capacity"), right=True),
    Column("FORMAT", "format"),
    Column("BUS", "bus"),
    Column("ID", "id"),
)


def size_of(text: str | int) -> int:
    """An option's size (Typer sends defaults through here too). Raises typer.BadParameter."""
    try:
        return units.size(str(text))
    except ValueError as fault:
        raise typer.BadParameter(str(fault)) from None


@verb(disks, "list")
def list_disks(
    session: Session,
    *,
    domain: Annotated[str | None, typer.Option(help="Only those on this storage domain.")] = None,
    vm: Annotated[str | None, typer.Option(help="Only those of this VM.")] = None,
) -> Answer:
    """List disks."""
    client = session.client
    on = names.find_id(client, names.DOMAIN, domain) if domain else None
    of = names.find_id(client, names.VM, vm) if vm else None
    rows = list(client.disks.all(domain_id=on, vm_id=of))
    vms = names.labels(client, names.VM, (row["vm_id"] for row in rows))
    columns = (*COLUMNS[:-1], Column("VM", lambda row: vms.get(row["vm_id"])), COLUMNS[-1])
    return Listing(rows, columns, "No disk. Make one: drystone disk create ALIAS --domain NAME --size 10GiB")


@verb(disks, "show")
def show_disk(session: Session, which: Which) -> Answer:
    """Show a disk."""
    return Card(names.find(session.client, names.DISK, which), sizes=("capacity",))


@verb(disks, "create")
def create_disk(
    session: Session,
    *,
    alias: Annotated[str, typer.Argument()],
    domain: Annotated[str, typer.Option(help="Storage domain, name or id.")],
    size: Annotated[int, typer.Option("--size", "-s", parser=size_of, metavar="SIZE", help="For example 10GiB.")],
    vm: Annotated[str | None, typer.Option(help="Plug it into this VM, which must be down.")] = None,
    format: Annotated[str, typer.Option(help="cow or raw.")] = "cow",
    bus: Annotated[str, typer.Option(help="virtio, scsi or sata.")] = "virtio",
    boot_order: Annotated[int | None, typer.Option(help="1 boots first.")] = None,
    id: Id = None,
) -> Answer:
    """Make a disk."""
    client = session.client
    body = {
        "alias": alias,
        "domain_id": names.find_id(client, names.DOMAIN, domain),
        "capacity": size,
        "format": format,
        "vm_id": names.find_id(client, names.VM, vm) if vm else None,
        "bus": bus,
        "boot_order": boot_order,
    }
    return Card(client.disks.create(body, id), sizes=("capacity",))


@verb(disks, "plug")
def plug_disk(
    session: Session, which: Which, vm: Annotated[str, typer.Option(help="Name or id; it must be down.")]
) -> Answer:
    """Plug a disk into a VM that is down."""
    row = names.find(session.client, names.DISK, which)
    body = {"vm_id": names.find_id(session.client, names.VM, vm)}
    return Card(session.client.disks.change(row["id"], row["version"], body), sizes=("capacity",))


@verb(disks, "unplug")
def unplug_disk(session: Session, which: Which) -> Answer:
    """Take a disk out of its VM, which must be down. Its content stays."""
    row = names.find(session.client, names.DISK, which)
    return Card(session.client.disks.change(row["id"], row["version"], {"vm_id": None}), sizes=("capacity",))


@verb(disks, "delete")
def delete_disk(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Delete a disk with everything on it."""
    client = session.client
    row = names.find(client, names.DISK, which)
    size = units.human(row["capacity"])
    session.confirm(f"The disk {row['alias']} ({size}) with all its volumes and data will be deleted for good.", yes)
    client.disks.delete(row["id"], row["version"])
    return Said(f"Deleted {row['alias']}.", {"id": row["id"]})


@verb(disks, "chain")
def show_chain(session: Session, which: Which) -> Answer:
    """Show a disk's chain of volumes, first one on top, and what QEMU and the storage say of it."""
    chain = session.client.chain(names.find_id(session.client, names.DISK, which))
    columns = (
        Column("VOLUME", "volume_id"),
        Column("SIZE", bytes_of("actual_size"), right=True),
        Column("HOLDS", lambda row: "the present" if row["active"] else row["description"] or row["snapshot_id"]),
        Column("ACTIVE", "active"),
    )
    return Card(chain, extra=(Listing(chain["volumes"], columns), _views(chain["facts"])))


def _views(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "No host could be asked about it."
    qemu, libvirt = facts["qemu"], facts["libvirt"]
    said = facts["unsure"] or f"QEMU: {qemu['state']}, libvirt: {libvirt['state']}, storage's leaf: "
    return said if facts["unsure"] else f"{said}{facts['storage']['leaf'] or facts['storage']['problem']}"
