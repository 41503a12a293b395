"""How this process is: /healthz, /readyz and /metrics, and the counters behind them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import prometheus_client as prometheus

BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
KEEP = 2.0  # seconds that the answers of checks and gauges are kept, so that eager scraping costs nothing


class Health:
    """Counters and checks of one process. A check answers "" when all is well and a sentence when not."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = prometheus.CollectorRegistry()
        self._checks: dict[str, Callable[[], str]] = {}
        self._warnings: dict[str, Callable[[], str]] = {}
        self._kept: tuple[float, dict[str, Any]] = (0.0, {})
        self._readings: list[Callable[[], None]] = []
        self._served = self._histogram("drystone_rpc_served_seconds", "requests answered", ("method", "outcome"))
        self._called = self._histogram("drystone_rpc_called_seconds", "requests made", ("service", "method", "outcome"))
        self._heard = self._counter("drystone_events_heard", "events handled", ("event", "outcome"))
        self._late = self._counter("drystone_rpc_late", "requests refused after their deadline", ("method",))
        self._unknown = self._counter("drystone_rpc_no_answer", "calls without an answer", ("service", "method"))

    def check(self, name: str, fn: Callable[[], str]) -> None:
        """What must be well for this process to be ready."""
        self._checks[name] = fn

    def warn(self, name: str, fn: Callable[[], str]) -> None:
        """What a person should look at, though the process works."""
        self._warnings[name] = fn

    def gauge(self, name: str, doc: str, fn: Callable[[], float | None]) -> None:
        """A number that is read when somebody asks; None keeps the last one."""
        gauge = prometheus.Gauge(name, doc, registry=self.registry)

        def read() -> None:
            value = fn()
            if value is not None:
                gauge.set(value)

        self._readings.append(read)

    def gauges(
        self, name: str, doc: str, labels: tuple[str, ...], fn: Callable[[], dict[tuple[str, ...], float]]
    ) -> None:
        """Numbers under labels, read when somebody asks; a combination that is gone is gone from the page."""
        gauge = prometheus.Gauge(name, doc, labels, registry=self.registry)

        def read() -> None:
            found = fn()
            gauge.clear()
            for values, number in found.items():
                gauge.labels(*values).set(number)

        self._readings.append(read)

    def served(self, method: str, outcome: str, seconds: float) -> None:
        self._served.labels(method, outcome).observe(seconds)
        if outcome == "late":
            self._late.labels(method).inc()

    def called(self, service: str, method: str, outcome: str, seconds: float) -> None:
        self._called.labels(service, method, outcome).observe(seconds)
        if outcome == "no_answer":
            self._unknown.labels(service, method).inc()

    def heard(self, event: str, outcome: str) -> None:
        self._heard.labels(event, outcome).inc()

    def report(self) -> dict[str, Any]:
        """Ready or not, and every check and warning with its sentence ("" = well)."""
        made, kept = self._kept
        if kept and time.monotonic() - made < KEEP:
            return kept
        checks = {name: _ask(fn) for name, fn in self._checks.items()}
        warnings = {name: said for name, fn in self._warnings.items() if (said := _ask(fn))}
        ready = not any(checks.values())
        report = {"service": self.service, "ready": ready, "checks": checks, "warnings": warnings}
        self._kept = (time.monotonic(), report)
        return report

    def metrics(self) -> bytes:
        for read in self._readings:
            with contextlib.suppress(Exception):  # a scrape must show the rest
                read()
        return prometheus.generate_latest(self.registry)

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """The three addresses. /healthz is 200 while the process lives; /readyz is 503 until it can work."""
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            start_response("200 OK", [("Content-Type", prometheus.CONTENT_TYPE_LATEST)])
            return [self.metrics()]
        if path not in ("/healthz", "/readyz"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/healthz, /readyz or /metrics\n"]
        report = self.report()
        well = path == "/healthz" or report["ready"]
        start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps(report).encode()]

    def _histogram(self, name: str, doc: str, labels: tuple[str, ...]) -> prometheus.Histogram:
        return prometheus.Histogram(name, doc, labels, buckets=BUCKETS, registry=self.registry)

    def _counter(self, name: str, doc: str, labels: tuple[str, ...]) -> prometheus.Counter:
        return prometheus.Counter(name, doc, labels, registry=self.registry)


def _ask(fn: Callable[[], str]) -> str:
    try:
        return fn()
    except Exception as fault:
        return str(fault) or type(fault).__name__
