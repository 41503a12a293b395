"""OpenAPI 3.1 of the whole API, made from the routes and the contracts' schemas."""

from __future__ import annotations

from typing import Any, cast

from marshmallow import fields as kinds

from contracts import errors, inventory
from contracts import fields as f
from contracts.promise import Rpc
from gateway.api import stream
from gateway.api.problems import TYPE
from gateway.api.route import DRY, PREFIX, Route, declared
from gateway.api.shapes import Shape, Shapes, about

_AT_THE_DOOR: tuple[type[errors.Problem], ...] = (errors.Unauthorized, errors.BadHttp)
_WITH_BODY: tuple[type[errors.Problem], ...] = (errors.BadBody, errors.UnsupportedMedia, errors.BodyTooLarge)
_STATUS = {200: "Done, or what was asked for.", 201: "Made.", 202: "Begun: follow what Location names.", 204: "Gone."}
_KEY = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"}

PROBLEM: Shape = {
    "type": "object",
    "description": "Problem details (RFC 9457). `code` is stable; `fields` are its facts; `hint` says what to do.",
    "required": ["type", "title", "status", "detail", "code", "fields", "hint", "correlation_id"],
    "properties": {
        **{name: {"type": "string"} for name in ("type", "title", "detail", "code", "hint", "correlation_id")},
        "status": {"type": "integer"},
        "fields": {"type": "object"},
    },
}
HEALTH: Shape = {
    "type": "object",
    "required": ["status", "services", "hosts"],
    "properties": {
        "status": {"enum": ["ok", "degraded"]},
        "services": {"type": "array", "items": {"type": "object"}},
        "hosts": {"type": "array", "items": {"type": "object"}},
    },
}


def describe(routes: tuple[Route, ...]) -> dict[str, Any]:
    shapes = Shapes()
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route, shapes)
    paths[f"{PREFIX}/events"] = {"get": _events()}
    paths[f"{PREFIX}/health"] = {"get": _health()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Drystone", "version": "1", "description": _ABOUT},
        "security": [{"token": []}, {"page": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(shapes.named.items())) | {"Problem": PROBLEM, "Health": HEALTH},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "page": {"type": "http", "scheme": "basic", "description": "For reading in a browser."},
            },
        },
    }


_ABOUT = (
    "Sizes are bytes, times ISO 8601 in UTC, ids lower-case UUIDs. Lists come in pages: follow `Link: rel=next`. "
    "A change or deletion names the version that was read by If-Match. A POST repeated with the same "
    "Idempotency-Key and body asks for the same work. Long work answers 202 with the address of its job, "
    "or of what is being made."
)


def _operation(route: Route, shapes: Shapes) -> Shape:
    found: Shape = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.path.split("/")[1]],
        "parameters": _parameters(route, shapes),
        "responses": {str(route.status): _success(route, shapes)} | _failures(route),
    }
    if route.may_be_dry:
        planned = {"application/json": {"schema": shapes.ref(route.promise.reply)}}
        found["responses"][str(DRY)] = {"description": "With `dry_run`: the plan.", "content": planned}
    if route.has_body:
        found["requestBody"] = _body(route, shapes)
    return found


def _parameters(route: Route, shapes: Shapes) -> list[Shape]:
    found = [{"name": n, "in": "path", "required": True, "schema": shapes.field(f.uid())} for n in route.in_path]
    if not route.has_body:
        for name, field in route.rest.items():
            if name not in route.ids:
                found.append({"name": name, "in": "query", "schema": _in_query(shapes.field(field))})
    if route.keyed:
        found.append({"name": "Idempotency-Key", "in": "header", "schema": _KEY, "description": _key_is(route)})
    if route.versioned:
        etag = {"type": "string", "pattern": '^"[0-9]{1,10}"$'}
        found.append({"name": "If-Match", "in": "header", "required": True, "schema": etag, "description": _ETAG})
    return found


_ETAG = "The ETag that was read."


def _key_is(route: Route) -> str:
    if not route.ids:
        return "Taken and not needed: asking twice equals asking once."
    return "Repeating a request with the same key asks for the same thing; a UUID becomes the new id itself."


def _in_query(shape: Shape) -> Shape:
    """A query cannot say null: leaving a parameter out means it."""
    plain = {name: value for name, value in shape.items() if name != "default" or value is not None}
    if isinstance(plain.get("type"), list):
        plain["type"] = plain["type"][0]
    if "enum" in plain:
        plain["enum"] = [word for word in plain["enum"] if word is not None]
    return plain


def _body(route: Route, shapes: Shapes) -> Shape:
    shape = shapes.object(route.rest, optional=route.ids) | {"additionalProperties": False}
    for part in route.parts:
        shape["properties"][part]["items"] = _part(route.rest[part], shapes)
    name = f"{route.promise.request.__name__}Body"
    shapes.named[name] = shape
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"required": "required" in shape, "content": content}


def _part(rows: kinds.Field[Any], shapes: Shapes) -> Shape:
    """A row whose id may be left out."""
    row = type(cast("kinds.Nested", cast("kinds.List[Any]", rows).inner).schema)
    shapes.named[f"{row.__name__}Body"] = shapes.object(declared(row), about(row), optional=("id",))
    return {"$ref": f"#/components/schemas/{row.__name__}Body"}


def _success(route: Route, shapes: Shapes) -> Shape:
    answer: Shape = {"description": _STATUS[route.status]}
    if route.status == 204:
        return answer
    answer["content"] = {"application/json": {"schema": shapes.ref(route.promise.reply)}}
    headers = {"Location": bool(route.location), "ETag": _has(route.promise, "version"), "Link": _is_list(route)}
    named = {name: {"schema": {"type": "string"}} for name, there in headers.items() if there}
    return answer | ({"headers": named} if named else {})


def _has(promise: Rpc, name: str) -> bool:
    return name in promise.reply._declared_fields


def _is_list(route: Route) -> bool:
    return issubclass(route.promise.reply, inventory.Rows)


def _failures(route: Route) -> Shape:
    own = (*_AT_THE_DOOR, *(_WITH_BODY if route.has_body else ()), *route.promise.errors, *errors.ALWAYS)
    needed = (errors.PreconditionRequired,) if route.versioned else ()
    return failures(*own, *needed)


def failures(*kinds: type[errors.Problem]) -> Shape:
    """One response per status, with the codes that may come with it."""
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        if kind.code not in codes.setdefault(kind.status, []):
            codes[kind.status].append(kind.code)
    content = {TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(s): {"description": ", ".join(codes[s]), "content": content} for s in sorted(codes)}


def _events() -> Shape:
    types = ", ".join(sorted(stream.TYPES))
    about = "Server-sent events from now on, or after Last-Event-ID. An event `gap` says that some were missed."
    return {
        "operationId": "follow_events",
        "summary": "Hear what happens",
        "description": about,
        "tags": ["events"],
        "parameters": [
            {"name": "type", "in": "query", "schema": {"type": "string"}, "description": types},
            {"name": "entity", "in": "query", "schema": {"type": "string"}, "description": "Ids, with commas."},
            {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},
        ],
        "responses": {"200": {"description": "A stream.", "content": {"text/event-stream": {}}}}
        | failures(*_AT_THE_DOOR, errors.BadRequest, errors.TooManyStreams),
    }


def _health() -> Shape:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}}
    return {
        "operationId": "health",
        "summary": "Ask who answers on the bus",
        "tags": ["health"],
        "parameters": [],
        "responses": {"200": {"description": "What was found.", "content": content}}
        | failures(*_AT_THE_DOOR, errors.InternalError),
    }
