"""How answers look: tables and cards for eyes, JSON and YAML for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client import units

Row = dict[str, Any]
Cell = Callable[[Row], Any]
_COLOURS = {
    **dict.fromkeys(("up", "ok", "active", "running", "done", "answers"), "green"),
    **dict.fromkeys(("problem", "failed", "stuck", "non_responsive", "unsure", "unknown", "away"), "red"),
    **dict.fromkeys(
        ("creating", "removing", "deleting", "starting", "undoing", "undone", "shutting_down", "locked"), "yellow"
    ),
}
OWN_TABLES = ("facts", "repair")  # parts of an object that a card shows beside it
WIDE = 250  # columns of a table that goes to a file or a pipe


@dataclass(frozen=True)
class Column:
    """`cell` is the row's field of that name, or makes the text."""

    title: str
    cell: str | Cell
    right: bool = False

    def text(self, row: Row) -> str:
        value = row.get(self.cell) if isinstance(self.cell, str) else self.cell(row)
        return plain(value)


@dataclass(frozen=True)
class Listing:
    """Rows for machines, columns for eyes; `empty` says what to do when there is nothing."""

    rows: Sequence[Any]
    columns: tuple[Column, ...]
    empty: str = "Nothing."


@dataclass(frozen=True)
class Card:
    """One object; `extra` lines of text or listings follow for eyes only."""

    row: Any
    sizes: tuple[str, ...] = ()
    extra: tuple[Listing | str, ...] = ()


@dataclass(frozen=True)
class Said:
    """A sentence for eyes, `data` for machines."""

    sentence: str
    data: Any


Answer = Listing | Card | Said


def bytes_of(name: str) -> Cell:
    return lambda row: units.human(row.get(name))


def time_of(name: str) -> Cell:
    """To the second; the fraction matters to machines only."""
    return lambda row: (row.get(name) or "")[:19].replace("T", " ")


def plain(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def console(*, stderr: bool = False) -> Console:
    """Where there is no terminal there is no width, and a cut-off id is worse than a long line."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDE, highlight=False, soft_wrap=False)


def show(answer: Answer, form: str) -> None:
    data = answer.rows if isinstance(answer, Listing) else answer.row if isinstance(answer, Card) else answer.data
    if form == "json":
        print(json.dumps(data, indent=2, ensure_ascii=False))
    elif form == "yaml":
        import yaml  # only here: it costs 30 ms of every other start

        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
    else:
        _for_eyes(answer, console())


def _for_eyes(answer: Answer | str, out: Console) -> None:
    if isinstance(answer, str):
        out.print(escape(answer))
    elif isinstance(answer, Said):
        out.print(escape(answer.sentence))
    elif isinstance(answer, Card):
        out.print(_card(answer))
        for part in answer.extra:
            _for_eyes(part, out)
    elif not answer.rows:
        out.print(escape(answer.empty))
    else:
        out.print(_table(answer))


def _table(listing: Listing) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in listing.columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in listing.rows:
        table.add_row(*(_coloured(column.text(row)) for column in listing.columns))
    return table


def _card(card: Card) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in card.row.items():
        if not (isinstance(value, list) or name in OWN_TABLES):
            table.add_row(name, _coloured(_value(value, name in card.sizes)))
    return table


def _value(value: Any, is_size: bool) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={plain(inner)}" for name, inner in value.items())
    return f"{units.human(value)} ({value})" if is_size and value is not None else plain(value)


def _coloured(text: str) -> str:
    colour = _COLOURS.get(text)
    return f"[{colour}]{text}[/]" if colour else escape(text)
