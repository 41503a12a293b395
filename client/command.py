"""The `drystone` command: nouns, then verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from client.commands import center, config, disk, doctor, domain, event, host, job, removal, snapshot, template, vm
from client.session import AsJson, AsYaml, Session, verb

ENDS = (
    "Ends with 0 done, 1 unexpected, 2 wrong use, 3 not found, 4 refused, 5 no valid token, 6 away, "
    "7 job undone, 8 job stuck, 9 job not done in time, 10 the doctor found that something differs."
)
app = typer.Typer(
    name="drystone",
    no_args_is_help=True,
    help="Storage operations for KVM hosts on shared storage.",
    epilog=ENDS,
    pretty_exceptions_enable=False,
)
NOUNS = {
    "data-center": center.data_centers,
    "cluster": center.clusters,
    "host": host.hosts,
    "domain": domain.domains,
    "disk": disk.disks,
    "vm": vm.vms,
    "template": template.templates,
    "snapshot": snapshot.snapshots,
    "removal": removal.removals,
    "job": job.jobs,
    "merge": job.merges,
    "event": event.events,
    "doctor": doctor.doctor,
    "config": config.config,
}
for _noun, _verbs in NOUNS.items():
    app.add_typer(_verbs, name=_noun)
verb(app, "health")(config.health)


@app.callback()
def options(
    ctx: typer.Context,
    *,
    address: Annotated[str | None, typer.Option(help="The gateway, like http://127.0.0.1:8480.")] = None,
    token: Annotated[str | None, typer.Option(help="Others can see it in the list of processes.")] = None,
    token_file: Annotated[str | None, typer.Option(help="File that holds the token.")] = None,
    as_json: AsJson = False,
    as_yaml: AsYaml = False,
) -> None:
    """What holds for every command: where the API is, and the form of its answers."""
    form = "json" if as_json else "yaml" if as_yaml else "table"
    ctx.obj = Session({"address": address, "token": token, "token_file": token_file}, form)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
