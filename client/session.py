"""What a command finds around it: the client, the form of its answer, and how errors and questions are told."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.markup import escape

from client import errors, settings, show
from client.api import Client

# Exit codes; docs/command.md has the same table, and a test compares them.
OK, UNEXPECTED, USAGE, NOT_FOUND, REFUSED, UNAUTHORIZED, AWAY, JOB_FAILED, JOB_STUCK, JOB_SLOW, DIFFERS = range(11)
INTERRUPTED = 130
_BY_STATUS = {401: UNAUTHORIZED, 403: UNAUTHORIZED, 404: NOT_FOUND, 503: AWAY, 429: AWAY}
_BY_KIND: dict[type[errors.ClientError], int] = {
    errors.Unreachable: AWAY,
    errors.NotFound: NOT_FOUND,
    errors.Ambiguous: NOT_FOUND,
    errors.JobFailed: JOB_FAILED,
    errors.JobStuck: JOB_STUCK,
    errors.JobSlow: JOB_SLOW,
    errors.BadSettings: USAGE,
}

AsJson = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
AsYaml = Annotated[bool, typer.Option("--yaml", help="Answer as YAML.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass
class Session:
    """One run of the command. `ends`: the exit code of an answer that is no error."""

    flags: Mapping[str, str | None] = field(default_factory=dict)
    form: str = "table"
    ends: int = OK

    @functools.cached_property
    def settings(self) -> settings.Settings:
        return settings.load(self.flags)

    @functools.cached_property
    def client(self) -> Client:
        """Raises BadSettings."""
        chosen = self.settings
        if chosen.token is None:
            raise errors.BadSettings(
                "No token was given.",
                "Set DRYSTONE_TOKEN_FILE to the gateway's token file (its path is in the gateway's log), "
                f"or DRYSTONE_TOKEN, or token in {chosen.file}.",
            )
        try:
            verify: bool | str = chosen.ca_file.value if chosen.ca_file else True
            return Client(chosen.address.value, chosen.token.value, verify=verify)
        except OSError as fault:
            raise errors.BadSettings(f"The certificates cannot be used: {fault}.") from None

    def confirm(self, lost: str, yes: bool) -> None:
        """Say what will be lost, and go on only if the person wants that."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise errors.BadSettings(f"{lost} Nobody can be asked here.", "Add --yes if that is wanted.")
        typer.confirm(f"{lost} Go on?", abort=True, err=True)

    def tell(self, sentence: str) -> None:
        """For eyes, beside the answer."""
        show.console(stderr=True).print(escape(sentence))


def exit_code(fault: errors.ClientError) -> int:
    if not isinstance(fault, errors.ApiError):
        return _BY_KIND[type(fault)]
    if fault.status >= 500:
        return _BY_STATUS.get(fault.status, UNEXPECTED)
    return _BY_STATUS.get(fault.status, REFUSED)


def tell_fault(fault: errors.ClientError, form: str) -> None:
    """On standard error: sentences for eyes, the problem itself for machines."""
    if form == "json":
        print(json.dumps(fault.as_dict(), ensure_ascii=False), file=sys.stderr)
        return
    out = show.console(stderr=True)
    # one line each, however long: scripts read them, and a terminal wraps by itself
    out.print(f"[red]error:[/] {escape(str(fault))}", soft_wrap=True)
    if fault.hint:
        out.print(f"[bold]hint:[/] {escape(fault.hint)}", soft_wrap=True)


Verb = Callable[..., "show.Answer | None"]


def verb(app: typer.Typer, name: str, **options: Any) -> Callable[[Verb], Verb]:
    """A command: its function takes the session first and answers what is to be shown. Adds --json and --yaml."""

    def wrap(fn: Verb) -> Verb:
        def run(ctx: typer.Context, as_json: bool, as_yaml: bool, **given: Any) -> None:
            session: Session = ctx.obj
            session.form = "json" if as_json else "yaml" if as_yaml else session.form
            try:
                answer = fn(session, **given)
            except errors.ClientError as fault:
                tell_fault(fault, session.form)
                raise typer.Exit(exit_code(fault)) from None
            if answer is not None:
                show.show(answer, session.form)
            if session.ends:
                raise typer.Exit(session.ends)

        _sign(run, fn)
        app.command(name, **options)(run)
        return fn

    return wrap


def _sign(run: Any, fn: Callable[..., Any]) -> None:
    """Give the wrapper the function's options, which Typer reads from the signature."""
    hints = typing.get_type_hints(fn, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(fn).parameters.values())[1:]
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *own,
        inspect.Parameter("as_json", keyword, default=False, annotation=AsJson),
        inspect.Parameter("as_yaml", keyword, default=False, annotation=AsYaml),
    ]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = fn.__name__, fn.__doc__
