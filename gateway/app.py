"""The front door's process: a Flask application, eventlet's WSGI server, and the bus's client, in one hub."""

from __future__ import annotations

import functools
import json
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any, cast

from chassis import bus  # isort: skip  # first: it patches sockets and threads

import eventlet
import eventlet.wsgi
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from chassis import logs
from chassis.frame import Frame
from contracts import errors
from contracts.promise import Event
from gateway.api import auth, door, health, openapi, page, problems, stream, table
from gateway.api.route import PREFIX
from gateway.settings import GatewaySettings

HTML = "text/html; charset=utf-8"
CONNECTIONS = 1000  # at the same time; each is a green thread of some 50 KiB
log = logs.get("gateway")


def make(settings: GatewaySettings, tokens: auth.Tokens, client: door.Caller, ring: stream.Ring) -> Flask:
    """The application. It keeps no data; whatever it answers, a promise answered."""
    app = Flask("gateway", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=settings.body_limit)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.wsgi_app = _measured(app.wsgi_app)  # type: ignore[method-assign]
    app.before_request(lambda: door.admit(tokens))
    app.after_request(_stamp)
    app.register_error_handler(errors.Problem, problems.answer)
    app.register_error_handler(HTTPException, problems.from_http)
    app.register_error_handler(Exception, problems.unexpected)
    for route in table.ROUTES:
        _add(app, route.method, route.rule, route.name, door.view(route, client))
    _add_own(app, client, ring)
    return app


def _measured(app: Callable[..., Any]) -> Callable[..., Any]:
    """Eventlet's input ends where a chunked body ends; unless told, Werkzeug takes such a body for an empty one."""

    def run(environ: dict[str, Any], start_response: Any) -> Any:
        if environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
            environ["wsgi.input_terminated"] = True
        return app(environ, start_response)

    return run


def _add(app: Flask, method: str, rule: str, name: str, view: Callable[..., Any]) -> None:
    app.add_url_rule(rule, name, view, methods=[method], provide_automatic_options=False, strict_slashes=False)


def _add_own(app: Flask, client: door.Caller, ring: stream.Ring) -> None:
    """What is no promise's: health, the event stream, the API's description."""

    @functools.cache
    def described() -> dict[str, Any]:
        return openapi.describe(table.ROUTES)

    def events() -> Response:
        wanted = stream.wish(request.args.to_dict(flat=False))
        frames = ring.listen(wanted, request.headers.get("Last-Event-ID"))
        no_buffering = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Response(frames, mimetype="text/event-stream", headers=no_buffering)

    _add(app, "GET", door.OPEN, "alive", lambda: _json({"status": "ok"}))
    _add(app, "GET", f"{PREFIX}/health", "health", lambda: _json(health.look(client)))
    _add(app, "GET", f"{PREFIX}/events", "events", events)
    _add(app, "GET", f"{PREFIX}/openapi.json", "openapi", lambda: _json(described()))
    _add(app, "GET", f"{PREFIX}/", "page", lambda: Response(page.render(described()), content_type=HTML))


def _json(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value), mimetype="application/json")


def _stamp(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.get("request_id", "")
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


class Gateway(bus.Service):
    """No promises of its own: it asks and listens."""

    name = "gateway"

    @classmethod
    def prepare(cls, frame: Frame) -> None:
        """The door opens before the broker is there, so that it can say what is missing."""
        settings = cast("GatewaySettings", frame.settings)
        ring = frame.own["ring"] = stream.Ring(settings.event_buffer, settings.stream_limit, settings.stream_heartbeat)
        app = make(settings, _tokens(settings), frame.client, ring)
        sock = _listen(settings)
        frame.client.subscribe(stream.EVENTS, functools.partial(_hear, ring), ring.miss)
        frame.health.gauge("drystone_event_streams", "event streams that are open", lambda: ring.streams)
        bus.spawn(_serve, sock, app, settings)
        where = sock.getsockname()
        log.info("listening", address=f"{'https' if settings.tls_cert else 'http'}://{where[0]}:{where[1]}")

    @classmethod
    def stopping(cls, frame: Frame) -> None:
        frame.own["ring"].stop()


def _hear(ring: stream.Ring, event: Event, news: dict[str, Any], note: bus.Note) -> None:
    ring.add(event, news, note.time, note.call.user, note.call.request_id)


def _tokens(settings: GatewaySettings) -> auth.Tokens:
    try:
        token, made = auth.token_from(settings.token_file)
    except auth.BadTokenFile as fault:
        sys.exit(f"The gateway cannot start: {fault}.")
    if made:
        log.info("made the admin's token", file=str(settings.token_file))
    return auth.Tokens(token)


def _listen(settings: GatewaySettings) -> Any:
    try:
        family = socket.AF_INET6 if ":" in settings.http_address else socket.AF_INET
        sock = eventlet.listen((settings.http_address, settings.http_port), family=family, backlog=256)
        if settings.tls_cert or settings.tls_key:
            # the handshake belongs to each client's own green thread: a silent client must not keep others out
            pair = {"certfile": settings.tls_cert, "keyfile": settings.tls_key}
            sock = eventlet.wrap_ssl(sock, server_side=True, do_handshake_on_connect=False, **pair)
    except (OSError, ssl.SSLError, ValueError) as fault:
        sys.exit(f"The gateway cannot listen on {settings.http_address} port {settings.http_port}: {fault}.")
    return sock


def _serve(sock: Any, app: Flask, settings: GatewaySettings) -> None:
    eventlet.wsgi.server(
        sock,
        app,
        log_output=False,
        debug=False,  # a traceback is for the log
        max_size=CONNECTIONS,
        minimum_chunk_size=1,  # an event leaves at once
        keepalive=True,
        socket_timeout=settings.client_timeout,
    )
