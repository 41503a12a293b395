"""Logs: one sentence and stable fields per line, as JSON or for eyes, with the call's request, flow and user in it.

    log = logs.get("snapshots")
    log.info("merge started", disk_id=disk_id)

Records of other libraries (nameko, kombu, alembic) leave through the same door.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from chassis import context

Fields = MutableMapping[str, Any]


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one part; its name appears as `logger`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def setup(service: str, *, level: str = "info", json: bool = False, stream: TextIO | None = None) -> None:
    """Send every record of this process to `stream` (standard error) in one form. Called once, at start."""
    shared = _processors(service)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_formatter(shared, json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("alembic", "sqlalchemy", "amqp", "kombu", "werkzeug"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))


def _processors(service: str) -> list[Any]:
    def name_service(_logger: Any, _method: str, fields: Fields) -> Fields:
        fields.setdefault("service", service)
        return fields

    return [
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_service,
        add_call,
    ]


def _formatter(shared: list[Any], json: bool) -> logging.Formatter:
    """Tracebacks become one field in JSON (a line stays a line) and stay readable for eyes."""
    form: list[Any]
    if json:
        form = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        form = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *form],
    )


def add_call(_logger: Any, _method: str, fields: Fields) -> Fields:
    """Put the current call's ids into a record; what the caller gave wins."""
    call = context.current()
    for name in ("request_id", "flow_id", "user"):
        value = getattr(call, name, None)
        if value:
            fields.setdefault(name, value)
    return fields
