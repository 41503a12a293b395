"""drystone vm"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client import errors, follow, names, units
from client.commands import disk as disk_commands
from client.commands.center import Description, Id, NewDescription, NewName, Which, given
from client.session import Session, Yes, verb
from client.show import Answer, Card, Column, Listing, Said, bytes_of

vms = typer.Typer(no_args_is_help=True, help="Virtual machines.")

NIC_KEYS = ("name", "mac", "model", "network", "linked")
Memory = Annotated[
    int | None, typer.Option("--memory", "-m", parser=disk_commands.size_of, metavar="SIZE", help="For example 2GiB.")
]
Cpus = Annotated[int | None, typer.Option("--cpus", "-c")]
Firmware = Annotated[str | None, typer.Option(help="bios or uefi.")]
Display = Annotated[str | None, typer.Option(help="vnc or none.")]
Nics = Annotated[
    list[str] | None,
    typer.Option("--nic", help="NAME[,mac=..][,model=virtio|e1000][,network=..][,linked=no]; can be repeated."),
]
Kernel = Annotated[str | None, typer.Option(help="Boot this kernel file of the host instead of a disk.")]
Initrd = Annotated[str | None, typer.Option(help="Its initial RAM disk.")]
Cmdline = Annotated[str | None, typer.Option(help="Its command line.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for copies of disks, or only begin them.")]
SerialLog = Annotated[str | None, typer.Option(help="File on the host that records the serial console.")]


def nic_of(text: str) -> dict[str, Any]:
    """One --nic. Raises typer.BadParameter."""
    name, *rest = text.split(",")
    nic: dict[str, Any] = {"name": name}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or key not in NIC_KEYS:
            raise typer.BadParameter(f"{part!r} is not one of {', '.join(f'{key}=..' for key in NIC_KEYS[1:])}")
        nic[key] = value not in ("no", "false") if key == "linked" else value
    return nic


def _boot(kernel: str | None, initrd: str | None, cmdline: str | None, serial_log: str | None) -> Any:
    boot = given(kernel=kernel, initrd=initrd, cmdline=cmdline, serial_log=serial_log)
    return boot or None


@verb(vms, "list")
def list_vms(
    session: Session,
    *,
    cluster: Annotated[str | None, typer.Option(help="Only those of this cluster.")] = None,
    host: Annotated[str | None, typer.Option(help="Only those on this host.")] = None,
) -> Answer:
    """List virtual machines."""
    client = session.client
    inside = names.find_id(client, names.CLUSTER, cluster) if cluster else None
    on = names.find_id(client, names.HOST, host) if host else None
    rows = list(client.vms.all(cluster_id=inside, host_id=on))
    hosts = names.labels(client, names.HOST, (row["host_id"] for row in rows))
    columns = (
        Column("NAME", "name"),
        Column("STATE", "state"),
        Column("HOST", lambda row: hosts.get(row["host_id"])),
        Column("CPUS", "cpus", right=True),
        Column("MEMORY", bytes_of("memory"), right=True),
        Column("DISKS", lambda row: len(row["disks"]), right=True),
        Column("REASON", "reason"),
        Column("ID", "id"),
    )
    return Listing(rows, columns, "No VM yet. Make one: drystone vm create NAME --cluster NAME --memory 1GiB")


def _card(row: Any) -> Card:
    nics = (Column("NIC", "name"), Column("MAC", "mac"), Column("MODEL", "model"), Column("NETWORK", "network"))
    disks = Listing(row["disks"], disk_commands.COLUMNS, "No disk is plugged.")
    return Card(row, ("memory",), (Listing(row["nics"], nics, "It has no NIC."), disks))


@verb(vms, "show")
def show_vm(session: Session, which: Which) -> Answer:
    """Show a virtual machine with its NICs and disks."""
    return _card(names.find(session.client, names.VM, which))


@verb(vms, "create")
def create_vm(
    session: Session,
    *,
    name: Annotated[str, typer.Argument()],
    cluster: Annotated[str | None, typer.Option(help="Name or id; the template's by default.")] = None,
    memory: Memory = None,
    template: Annotated[str | None, typer.Option(help="Hardware and disks of this template.")] = None,
    clone: Annotated[
        str, typer.Option(help="thin: its disks stand on the template's; full: they are copies.")
    ] = "thin",
    cpus: Cpus = None,
    description: Description = "",
    firmware: Firmware = None,
    display: Display = None,
    nic: Nics = None,
    kernel: Kernel = None,
    initrd: Initrd = None,
    cmdline: Cmdline = None,
    serial_log: SerialLog = None,
    wait: Wait = True,
    id: Id = None,
) -> Answer:
    """Make a virtual machine, empty or from a template. Disks for it: drystone disk create ALIAS --vm NAME ...

    What is left out is the template's; without one --cluster and --memory are needed."""
    client = session.client
    base = names.find(client, names.TEMPLATE, template) if template else None
    if base is None and (cluster is None or memory is None):
        raise errors.BadSettings("Without a --template a VM needs --cluster and --memory.")
    body = given(
        name=name,
        cluster_id=names.find_id(client, names.CLUSTER, cluster) if cluster else base and base["cluster_id"],
        template_id=base["id"] if base else None,
        clone=clone if base else None,
        memory=memory,
        cpus=cpus,
        description=description,
        firmware=firmware,
        display=display,
        boot=_boot(kernel, initrd, cmdline, serial_log),
        nics=[nic_of(text) for text in nic] if nic else None,
    )
    made = client.vms.create(body, id)
    return _card(follow.copies(session, client.vms, made) if wait and base else made)


@verb(vms, "change")
def change_vm(
    session: Session,
    *,
    which: Which,
    name: NewName = None,
    memory: Memory = None,
    cpus: Cpus = None,
    description: NewDescription = None,
    firmware: Firmware = None,
    display: Display = None,
    nic: Nics = None,
    kernel: Kernel = None,
    initrd: Initrd = None,
    cmdline: Cmdline = None,
    serial_log: SerialLog = None,
) -> Answer:
    """Change a virtual machine; hardware only while it is down. --nic replaces all NICs."""
    row = names.find(session.client, names.VM, which)
    body = given(
        name=name,
        memory=memory,
        cpus=cpus,
        description=description,
        firmware=firmware,
        display=display,
        boot=_boot(kernel, initrd, cmdline, serial_log),
        nics=[nic_of(text) for text in nic] if nic else None,
    )
    return _card(session.client.vms.change(row["id"], row["version"], body))


@verb(vms, "delete")
def delete_vm(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Delete a virtual machine that is down, with its disks. Unplug what is to be kept."""
    row = names.find(session.client, names.VM, which)
    disks = ", ".join(f"{disk['alias']} ({units.human(disk['capacity'])})" for disk in row["disks"])
    lost = f" and its disks {disks} with all snapshots" if disks else ""
    session.confirm(f"The VM {row['name']}{lost} will be deleted for good.", yes)
    session.client.vms.delete(row["id"], row["version"])
    return Said(f"Deleted {row['name']}.", {"id": row["id"]})


@verb(vms, "start")
def start_vm(
    session: Session,
    *,
    which: Which,
    host: Annotated[str | None, typer.Option(help="Where; any host of its cluster by default.")] = None,
) -> Answer:
    """Start a virtual machine."""
    client = session.client
    on = names.find_id(client, names.HOST, host) if host else None
    return _power(client.start_vm(names.find_id(client, names.VM, which), on))


@verb(vms, "shutdown")
def shut_down_vm(session: Session, which: Which) -> Answer:
    """Ask the guest to shut down. It may take its time, or not listen."""
    return _power(session.client.shut_down_vm(names.find_id(session.client, names.VM, which)))


@verb(vms, "power-off")
def power_off_vm(session: Session, which: Which, yes: Yes = False) -> Answer:
    """Cut the power of a virtual machine."""
    row = names.find(session.client, names.VM, which)
    session.confirm(f"The VM {row['name']} loses what it has not yet written to its disks.", yes)
    return _power(session.client.power_off_vm(row["id"]))


def _power(vm: Any) -> Said:
    reason = f" ({vm['reason']})" if vm["reason"] else ""
    return Said(f"{vm['name']} is {vm['state']}{reason}.", vm)
