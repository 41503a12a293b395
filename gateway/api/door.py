"""The view of every route: read the request, call the promise, answer."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from flask import Response, g, request

from chassis import context
from contracts import errors
from contracts.promise import Rpc
from gateway.api import paging
from gateway.api.auth import Tokens
from gateway.api.route import DRY, PREFIX, Route, request_of

OPEN = "/healthz"  # the only address that needs no token
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_NOT_TEXT = re.compile(rb"\\u(0000|d[89a-f][0-9a-f]{2})", re.IGNORECASE)
DEEP = 50  # levels of nesting; what we take has 4


class Caller(Protocol):
    """The part of the bus's client that the door needs."""

    def call(self, promise: Rpc, request: dict[str, Any], *, deadline: float | None = None) -> dict[str, Any]: ...


def view(route: Route, bus: Caller) -> Callable[..., Response]:
    """The Flask view of one route."""

    def answer(**path: str) -> Response:
        query = request.args.to_dict(flat=False)
        asked = request_of(route, path, query, body() if route.has_body else {}, request.headers.get)
        checked = route.promise.load_request(_clean(asked))
        return respond(route, ask(bus, route.promise, checked), dry=bool(checked.get("dry_run")))

    return answer


def ask(bus: Caller, promise: Rpc, asked: dict[str, Any], deadline: float | None = None) -> dict[str, Any]:
    """Call in the name of the request's user; `deadline` in seconds. Raises what the promise declares."""
    seconds = promise.deadline if deadline is None else deadline
    call = context.Call(request_id=g.request_id, user=g.user, deadline=time.time() + seconds)
    with context.use(call):
        return bus.call(promise, asked, deadline=seconds)


def respond(route: Route, reply: dict[str, Any], *, dry: bool = False) -> Response:
    """`dry`: nothing was begun, so there is no place where it could be followed."""
    if route.status == 204:
        return Response(status=204)
    status = DRY if dry else route.status
    response = Response(json.dumps(reply, separators=(",", ":")), status, mimetype="application/json")
    if route.location and not dry:
        response.headers["Location"] = PREFIX + route.location.format_map(reply)
    if "version" in reply:
        response.headers["ETag"] = f'"{reply["version"]}"'
    next_page = paging.link(request.path, request.args.items(multi=True), reply) if "next" in reply else None
    if next_page:
        response.headers["Link"] = next_page
    return response


def body() -> dict[str, Any]:
    """The request's JSON object; no body at all is an empty one. Raises BadBody, UnsupportedMedia."""
    raw = request.get_data(cache=False)
    if request.content_length is None and len(raw) >= (request.max_content_length or len(raw) + 1):
        raise errors.BodyTooLarge(limit=request.max_content_length)  # Werkzeug cuts a chunked body off at the limit
    if not raw:
        return {}
    if request.mimetype != "application/json":
        raise errors.UnsupportedMedia(type=request.mimetype or "unnamed")
    try:
        found = json.loads(raw.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise errors.BadBody(reason=f"it is nested deeper than {DEEP} levels") from None
    except ValueError as fault:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise errors.BadBody(reason=str(fault)) from None
    if not isinstance(found, dict):
        raise errors.BadBody(reason=f"it is a {type(found).__name__}")
    _check_text(raw, found)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _check_text(raw: bytes, found: dict[str, Any]) -> None:
    """Refuse what JSON can say and UTF-8 or PostgreSQL can't: half a surrogate pair, NUL; and absurd nesting."""
    if _depth(found) > DEEP:
        raise errors.BadBody(reason=f"it is nested deeper than {DEEP} levels")
    if not _NOT_TEXT.search(raw):
        return
    text = json.dumps(found, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.BadBody(reason="a text in it is no Unicode") from None
    if "\\u0000" in text:
        raise errors.BadBody(reason="a text in it has a NUL character")


def _depth(found: Any) -> int:
    levels, layer = 0, [found]
    while layer and levels <= DEEP:
        levels += 1
        nested = [part for part in layer if isinstance(part, dict | list)]
        layer = [child for part in nested for child in (part.values() if isinstance(part, dict) else part)]
    return levels


def _clean(asked: dict[str, Any]) -> dict[str, Any]:
    """The query and the path can hold a NUL too."""
    bad = [name for name, value in asked.items() if isinstance(value, str) and "\0" in value]
    if bad:
        raise errors.BadRequest(errors={name: ["Control characters are not allowed."] for name in bad})
    return asked


def admit(tokens: Tokens) -> None:
    """Before every request: give it an id, and find out whose it is. Raises Unauthorized."""
    named = request.headers.get("X-Request-ID", "")
    g.request_id = named if _REQUEST_ID.match(named) else uuid.uuid4().hex
    g.user = tokens.user(request.headers.get("Authorization"), request.method)
    if g.user is None and request.path != OPEN:
        raise errors.Unauthorized()
