"""Errors as HTTP answers: application/problem+json (RFC 9457)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from flask import Response, g, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from chassis import logs
from contracts import errors
from gateway.api.route import PREFIX

log = logs.get("gateway")

TYPE = "application/problem+json"
AWAY = 503
RETRY_AFTER = "2"  # seconds; a service that restarts is back in about that time


def body_of(problem: errors.Problem) -> dict[str, Any]:
    """What a caller sees of a problem."""
    return {
        "type": f"{PREFIX}/#{problem.code}",
        "title": problem.code.replace("_", " "),
        "status": problem.status,
        "detail": _detail(problem),
        "code": problem.code,
        "fields": problem.fields,
        "hint": problem.advice,
        "correlation_id": problem.fields.get("correlation_id") or g.get("request_id", ""),
    }


def _detail(problem: errors.Problem) -> str:
    if not isinstance(problem, errors.BadRequest):
        return str(problem)
    return f"The request is not valid. {' '.join(_faults(problem.fields.get('errors'), ''))}"


def _faults(found: Any, where: str) -> Iterator[str]:
    """Marshmallow's tree of faults as sentences: 'nics.0.mac: Not a MAC address.'"""
    if isinstance(found, dict):
        for name, inner in found.items():
            yield from _faults(inner, f"{where}.{name}" if where else str(name))
    elif isinstance(found, list):
        yield from (f"{where}: {fault}" for fault in found)
    else:
        yield f"{where}: {found}"


def answer(problem: errors.Problem) -> Response:
    response = Response(json.dumps(body_of(problem)), problem.status, mimetype=TYPE)
    if problem.status == AWAY:
        response.headers["Retry-After"] = RETRY_AFTER
    if isinstance(problem, errors.Unauthorized):
        response.headers["WWW-Authenticate"] = 'Bearer realm="drystone", Basic realm="drystone"'
    if isinstance(problem, errors.MethodNotAllowed):
        response.headers["Allow"] = problem.fields["allowed"]
    if problem.status >= 500:
        log.warning("request failed", code=problem.code, detail=str(problem), path=request.path)
    return response


def from_http(fault: HTTPException) -> Response:
    """What Flask and Werkzeug refuse."""
    if isinstance(fault, NotFound):
        return answer(errors.NoSuchAddress(path=request.path))
    if isinstance(fault, MethodNotAllowed):
        allowed = ", ".join(sorted(fault.valid_methods or ()))
        return answer(errors.MethodNotAllowed(method=request.method, path=request.path, allowed=allowed))
    if isinstance(fault, RequestEntityTooLarge):
        return answer(errors.BodyTooLarge(limit=request.max_content_length))
    if isinstance(fault, ClientDisconnected):  # Werkzeug's word for whatever stops it from reading a body
        return answer(errors.BadHttp(reason="its body ends too early, or its chunks are none"))
    return answer(errors.BadHttp(reason=(fault.description or fault.name).rstrip(".")))


def unexpected(fault: Exception) -> Response:
    correlation_id = f"gateway-{uuid.uuid4().hex[:12]}"
    log.error("request broke", correlation_id=correlation_id, path=request.path, exc_info=fault)
    return answer(errors.InternalError(correlation_id=correlation_id))
