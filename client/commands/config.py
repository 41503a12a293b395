"""drystone config, drystone health"""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from client import errors
from client.session import AWAY, Session, verb
from client.settings import Setting
from client.show import Answer, Column, Listing, Said, show

config = typer.Typer(no_args_is_help=True, help="Settings.")

SERVICES = {
    "inventory": "services.inventory.settings",
    "snapshots": "services.snapshots.settings",
    "hostagent": "services.hostagent.settings",
    "gateway": "gateway.settings",
}


@verb(config, "show")
def show_settings(
    session: Session,
    service: Annotated[str | None, typer.Option(help=f"Of a service on this machine: {', '.join(SERVICES)}.")] = None,
) -> Answer | None:
    """Show this command's settings, or with --service those that a service would start with here; secrets masked."""
    if service is not None:
        _of_service(service)
        return None
    chosen = session.settings
    rows = [_row("address", chosen.address), _row("token", chosen.token, secret=True), _row("ca_file", chosen.ca_file)]
    rows.append({"name": "file", "value": str(chosen.file), "origin": "read" if chosen.file.exists() else "absent"})
    return Listing(rows, (Column("SETTING", "name"), Column("VALUE", "value"), Column("FROM", "origin")))


def _row(name: str, setting: Setting | None, *, secret: bool = False) -> dict[str, str | None]:
    value = None if setting is None else "***" if secret else setting.value
    return {"name": name, "value": value, "origin": setting.origin if setting else "not set"}


def _of_service(service: str) -> None:
    """Asked of the service's own code, in a process of its own: the command shares no code with it."""
    if service not in SERVICES:
        raise errors.NotFound(f"There is no service {service!r}.", f"There are {', '.join(SERVICES)}.")
    asked = subprocess.run(
        [sys.executable, "-m", "chassis.show", SERVICES[service]],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if asked.returncode:
        raise errors.BadSettings((asked.stderr or asked.stdout).strip().rpartition("Traceback")[2][-2000:])
    print(asked.stdout, end="")


def health(session: Session) -> None:
    """Ask who answers. Ends with 6 when a service does not."""
    found = session.client.health()
    if session.form == "table":
        columns = (
            Column("SERVICE", "name"),
            Column("STATE", lambda row: "answers" if row["answers"] else "away"),
            Column("MS", "milliseconds", right=True),
            Column("PROBLEM", "problem"),
        )
        show(Listing(found["services"], columns), "table")
        hosts = (Column("HOST", "name"), Column("STATE", "state"), Column("PROBLEM", "problem"))
        show(Listing(found["hosts"], hosts, "No host is known."), "table")
    else:
        show(Said("", found), session.form)
    if not all(service["answers"] for service in found["services"]):
        raise typer.Exit(AWAY)
