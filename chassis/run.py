"""The whole start of a process, in one place: `run.serve(Inventory, InventorySettings, "services.inventory")`."""

from __future__ import annotations

from chassis import bus  # isort: skip  # first: it patches sockets and threads before anything else uses them

import os
import sys

from chassis import logs, outbox, settings
from chassis.clock import SystemClock
from chassis.database import Database
from chassis.frame import Frame
from chassis.health import Health
from contracts import errors

DATABASE_TRIES = (0.5, 1.0, 2.0, 5.0)  # seconds between attempts to reach the database at the start
_log = logs.get("run")


def serve(
    service_cls: type[bus.Service], settings_cls: type[settings.FrameSettings], package: str | None = None
) -> None:
    """Run one service until SIGTERM. `package` holds its migrations; None means it has no database.

    Ends with a sentence and a code that is not 0 when the settings are wrong or the broker refuses our user.
    """
    try:
        chosen = settings.load(settings_cls, os.environ)
    except settings.BadSettings as faults:
        sys.exit(str(faults))
    logs.setup(service_cls.name, level=chosen.log_level, json=chosen.log_json)
    frame = frame_of(service_cls, chosen)
    # who asks during a long migration must not hear that all of no checks are well; the bus puts its own word there
    frame.health.check("bus", lambda: "not connected yet, the process is starting")
    if chosen.health_port:
        _serve_health(frame)
    if package is not None:
        _open_database(frame, service_cls.name, package)
    service_cls.prepare(frame)
    _start_flows(service_cls, frame)
    try:
        bus.run_service(service_cls, frame)
    finally:
        if frame.runner is not None:
            frame.runner.stop()
        if frame.database is not None:
            frame.database.close()


def frame_of(service_cls: type[bus.Service], chosen: settings.FrameSettings) -> Frame:
    """The frame without a database."""
    health = Health(service_cls.name)
    client = bus.Client(chosen.amqp_uri, service_cls.address(chosen), meter=health)
    return Frame(chosen, SystemClock(), logs.get(service_cls.name), client, health)


def _serve_health(frame: Frame) -> None:
    try:
        bus.serve_http(frame.health.wsgi, frame.settings.health_port)
    except OSError as fault:
        sys.exit(f"The health port {frame.settings.health_port} cannot be used: {fault}.")


def _open_database(frame: Frame, name: str, package: str) -> None:
    from chassis import migrate  # 10 MB that a process without a database does not need

    database = frame.database = Database(frame.settings.database_url, frame.clock, service=name)
    for attempt in range(sys.maxsize):
        try:
            migrate.upgrade(database, package)
            break
        except errors.DatabaseAway as problem:
            _log.warning("the database is away; waiting for it", reason=problem.fields.get("reason"))
            bus.sleep(DATABASE_TRIES[min(attempt, len(DATABASE_TRIES) - 1)])
        except migrate.SchemaUnknown as problem:
            sys.exit(str(problem))
    publisher = outbox.Publisher(database, bus.outbox_sender(frame.client), bus.Signal())
    frame.health.check("database", lambda: _database_fault(database))
    frame.health.gauge("drystone_outbox_age_seconds", "how long the oldest unpublished news have waited", publisher.age)
    bus.spawn(publisher.loop)


def _database_fault(database: Database) -> str:
    try:
        with database.read() as session:
            session.connection()
            return ""
    except errors.DatabaseAway as problem:
        return str(problem)


def _start_flows(service_cls: type[bus.Service], frame: Frame) -> None:
    kinds = service_cls.flows(frame)
    if not kinds:
        return
    from chassis import steps  # only services with flows need it

    chosen = frame.settings
    frame.runner = steps.Runner(
        frame.db,
        kinds,
        frame.clock,
        chosen.instance,
        lease_seconds=chosen.flow_lease,
        patience=chosen.flow_patience,
        limit=chosen.flow_limit,
        home=chosen.state_dir / "runners",
        tools=frame,
        spawn=bus.spawn,
        signal=bus.Signal,
    )
    bus.spawn(frame.runner.loop)
    frame.health.gauges("drystone_flows", "durable flows", ("kind", "state"), lambda: _flow_counts(frame))
    frame.health.warn("stuck", lambda: _stuck(_flow_counts(frame)))


def _flow_counts(frame: Frame) -> dict[tuple[str, ...], float]:
    from chassis import steps

    with frame.db.read() as session:
        return {(kind, state): number for (kind, state), number in steps.counts(session).items()}


def _stuck(counts: dict[tuple[str, ...], float]) -> str:
    stuck = {kind: number for (kind, state), number in counts.items() if state == "stuck" and number}
    return "; ".join(f"{number:g} {kind} flows are stuck and need a person" for kind, number in stuck.items())
