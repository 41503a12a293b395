"""drystone event"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from client.session import Session, verb

events = typer.Typer(no_args_is_help=True, help="What happens.")


@verb(events, "follow")
def follow_events(
    session: Session,
    *,
    type: Annotated[list[str] | None, typer.Option(help="Only these, for example vm_changed.")] = None,
    entity: Annotated[list[str] | None, typer.Option(help="Only what is about these ids.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    after: Annotated[str | None, typer.Option(help="Begin after the event with this id.")] = None,
) -> None:
    """Print events as they come, without end. With --json one object per line."""
    for number, news in enumerate(session.client.events(type or (), entity or (), after), 1):
        print(json.dumps(news, ensure_ascii=False) if session.form != "table" else _line(news), flush=True)
        if number == count:
            return


def _line(news: Any) -> str:
    if news["type"] == "gap":
        return f"-- {news['message']}"
    entity = news["entity"]
    name = entity.get("name") or entity.get("alias") or entity.get("description") or entity["id"]
    state = f" {entity['state']}" if "state" in entity else ""
    step = f" ({entity['step']})" if entity.get("step") else ""
    return f"{news['time'][:19]} {news['type']} {name}{state}{step}"
