"""One row of the API: which promise an address stands for, and how HTTP maps onto its request.

    Route("POST", "/vms/{vm_id}/snapshots", snapshots.create_snapshot, "Take a snapshot", 202, ids=("job_id", "id"))

The fields of the promise's request are shared out by fixed rules, which the OpenAPI follows too:

| field                              | comes from                                                                  |
|------------------------------------|-----------------------------------------------------------------------------|
| named in the path                  | the path                                                                    |
| `version` of a change              | If-Match (the ETag that was read)                                           |
| named in `ids`                     | the body, else the Idempotency-Key, else a new one                          |
| `id` in the rows of `parts`        | the body, else it follows from the whole's id and the row's name            |
| the rest                           | the query for GET and DELETE, the body for POST, PUT and PATCH              |
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marshmallow import Schema
from marshmallow import fields as kinds

from contracts import errors
from contracts import fields as f
from contracts.promise import Rpc

PREFIX = "/api/v1"
DRY = 200  # the success of a request with `dry_run`, which begins nothing
# Keys that are no UUIDs become ids below this one; changing it makes old keys name new work.
KEYS = uuid.UUID("6c1f7a52-6d0b-5d0e-9c53-6a1d2b8f4e10")
KEY_RULE = re.compile(r"[\x21-\x7e]{1,255}\Z")
_UUID = re.compile(rf"{f.UUID}\Z")
_WHOLE = re.compile(r"-?[0-9]{1,20}\Z")


@dataclass(frozen=True)
class Route:
    """`status` is the one success; `location` a template over the reply; `ids` the request's ids that the caller
    may pick: the first is the Idempotency-Key itself, the others follow from it; `parts` lists of named rows."""

    method: str
    path: str
    promise: Rpc
    summary: str
    status: int = 200
    location: str = ""
    ids: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @functools.cached_property
    def in_path(self) -> tuple[str, ...]:
        return tuple(re.findall(r"{(\w+)}", self.path))

    @functools.cached_property
    def versioned(self) -> bool:
        return "version" in declared(self.promise.request)

    @functools.cached_property
    def rest(self) -> dict[str, kinds.Field[Any]]:
        """What neither path nor If-Match gives."""
        taken = {*self.in_path, *(("version",) if self.versioned else ())}
        return {name: field for name, field in declared(self.promise.request).items() if name not in taken}

    @property
    def has_body(self) -> bool:
        return self.method in ("POST", "PUT", "PATCH")

    @property
    def may_be_dry(self) -> bool:
        return "dry_run" in declared(self.promise.request)

    @property
    def keyed(self) -> bool:
        return self.method == "POST" or bool(self.ids)

    @property
    def name(self) -> str:
        return self.promise.method

    @property
    def rule(self) -> str:
        """The same path in Werkzeug's words."""
        return PREFIX + re.sub(r"{(\w+)}", r"<\1>", self.path)


def declared(schema: type[Schema]) -> dict[str, kinds.Field[Any]]:
    return dict(schema._declared_fields)


def request_of(
    route: Route,
    path: Mapping[str, str],
    query: Mapping[str, list[str]],
    body: dict[str, Any],
    head: Callable[[str], str | None],
) -> dict[str, Any]:
    """The promise's request, not yet validated. Raises BadRequest, PreconditionRequired."""
    request = dict(body) if route.has_body else {}
    taken = [name for name in (*route.in_path, "version") if name in request and name not in route.rest]
    if taken:
        raise errors.BadRequest(errors={name: ["Not in the body: it comes from the address."] for name in taken})
    request.update(_from_query(route, query))
    request.update(path)
    if route.versioned:
        request["version"] = version_of(route, head("If-Match"))
    if route.ids:
        _pick_ids(route, request, head("Idempotency-Key"))
    for name in route.parts:
        _name_parts(request, name)
    return request


def _from_query(route: Route, query: Mapping[str, list[str]]) -> dict[str, Any]:
    if query and route.has_body:
        raise errors.BadRequest(errors={name: ["Unknown parameter."] for name in query})
    found: dict[str, Any] = {}
    for name, values in query.items():
        if len(values) > 1:
            raise errors.BadRequest(errors={name: ["Given more than once."]})
        if name not in route.rest or name in route.ids:
            raise errors.BadRequest(errors={name: ["Unknown parameter."]})
        found[name] = _typed(route.rest[name], values[0])
    return found


def _typed(field: kinds.Field[Any], text: str) -> Any:
    """A query knows only text; what does not look like the field's type is left to the schema to refuse."""
    if isinstance(field, kinds.Integer) and _WHOLE.match(text):
        return int(text)
    if isinstance(field, kinds.Boolean) and text in ("true", "false"):
        return text == "true"
    return text


def version_of(route: Route, if_match: str | None) -> int:
    """The version that an ETag names."""
    if if_match is None:
        raise errors.PreconditionRequired(kind=route.path.split("/")[1].removesuffix("s"))
    found = re.match(r'"([0-9]{1,10})"\Z', if_match.strip())
    if found is None:
        raise errors.BadRequest(errors={"If-Match": ['Not an ETag that was read here, like "3".']})
    return int(found[1])


def _pick_ids(route: Route, request: dict[str, Any], key: str | None) -> None:
    first = _first_id(key)
    for name in route.ids:
        derived = first if name == route.ids[0] else uuid.uuid5(first, name)
        request.setdefault(name, str(derived))


def _first_id(key: str | None) -> uuid.UUID:
    if key is None:
        return uuid.uuid4()
    if not KEY_RULE.match(key):
        raise errors.BadRequest(errors={"Idempotency-Key": ["Must be 1 to 255 visible ASCII characters."]})
    return uuid.UUID(key) if _UUID.match(key) else uuid.uuid5(KEYS, key)


def _name_parts(request: dict[str, Any], name: str) -> None:
    """Anything odd is left as it is, for the schema to refuse."""
    rows, whole = request.get(name), request.get("id")
    if isinstance(rows, list) and isinstance(whole, str) and _UUID.match(whole):
        request[name] = [_named(uuid.UUID(whole), row) for row in rows]


def _named(whole: uuid.UUID, row: Any) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        return row
    return {"id": str(uuid.uuid5(whole, row["name"]))} | row
