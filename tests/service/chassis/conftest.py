"""The two small services of the frame's tests, as processes on the real broker."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes.broker import Broker
from tests.fakes.process import Process

Start = Callable[..., Process]


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of this test run without coverage: it has thousands of messages, and others walk the same lines."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(rabbit: Broker, tmp_path: pathlib.Path) -> Iterator[Start]:
    """run("leaf", slow=0.1): a process of tests.fakes.services.leaf; it ends with the test."""
    started: list[Process] = []

    def start(name: str, instance: str = "", **settings: Any) -> Process:
        folder = tmp_path / name
        settings.setdefault("amqp_uri", rabbit.uri)
        process = Process(f"tests.fakes.services.{name}", folder, **settings)
        process.log_path = folder / f"{name}{instance}.log"
        started.append(process.start())
        return process

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def leaf(run: Start) -> Process:
    process = run("leaf")
    process.wait_for_log("started")
    return process


@pytest.fixture
def relay(run: Start) -> Process:
    process = run("relay")
    process.wait_for_log("started")
    return process
