"""Names or ids everywhere: find the one object that a person means.

A full id is an id. Anything else is a name; for what has no name (snapshots, jobs) it is the description or the
beginning of an id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from client.api import Client, Collection
from client.errors import Ambiguous, NotFound

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Kind:
    """`noun` as on the command line; `label` the field that people call it by."""

    noun: str
    attribute: str
    label: str

    def of(self, client: Client) -> Collection[Any]:
        found: Collection[Any] = getattr(client, self.attribute)
        return found


DATA_CENTER = Kind("data-center", "data_centers", "name")
CLUSTER = Kind("cluster", "clusters", "name")
HOST = Kind("host", "hosts", "name")
DOMAIN = Kind("domain", "storage_domains", "name")
DISK = Kind("disk", "disks", "alias")
VM = Kind("vm", "vms", "name")
TEMPLATE = Kind("template", "templates", "name")
SNAPSHOT = Kind("snapshot", "snapshots", "description")
JOB = Kind("job", "jobs", "description")
MERGE = Kind("merge", "merges", "")


def is_id(word: str) -> bool:
    return bool(_ID.match(word.lower()))


def find(client: Client, kind: Kind, word: str, **filters: Any) -> dict[str, Any]:
    """The whole object. Raises NotFound, Ambiguous."""
    if is_id(word):
        found: dict[str, Any] = kind.of(client).get(word.lower())
        return found
    rows = list(kind.of(client).all(**filters))
    named = [row for row in rows if kind.label and row[kind.label] == word]
    return _one(kind, word, named or _by_prefix(word, rows))


def find_id(client: Client, kind: Kind, word: str, **filters: Any) -> str:
    """Its id; a full id is taken as it is, without asking."""
    return word.lower() if is_id(word) else str(find(client, kind, word, **filters)["id"])


def labels(client: Client, kind: Kind, ids: Iterable[str | None]) -> dict[str | None, str]:
    """The names of these, for tables; an id that has none any more stands for itself."""
    wanted = {id for id in ids if id}
    if not wanted:
        return {}
    known = {row["id"]: row[kind.label] for row in kind.of(client).all()}
    return {id: known.get(id, id) for id in wanted}


def _by_prefix(word: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(word) < SHORTEST_PREFIX:
        return []
    return [row for row in rows if row["id"].startswith(word.lower())]


def _one(kind: Kind, word: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    if not rows:
        raise NotFound(f"There is no {kind.noun} {word!r}.", f"List what exists: drystone {kind.noun} list")
    if len(rows) > 1:
        ids = ", ".join(row["id"] for row in rows[:5])
        raise Ambiguous(f"{len(rows)} objects of kind {kind.noun} are called {word!r}: {ids}.", "Use the id.")
    return rows[0]
