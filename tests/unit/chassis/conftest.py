"""Fixtures of the frame's own tests."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator

import hypothesis
import pytest
import structlog

from chassis import logs
from tests.fakes.flow_bench import Bench

# a busy machine makes examples slow, not wrong; each one makes a database here, so fewer are enough
SLOW = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("chassis", deadline=None, max_examples=40, suppress_health_check=SLOW)
hypothesis.settings.load_profile("chassis")


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """structlog's own set-up draws every traceback in colours, which takes a second."""
    logs.setup("test", json=True, stream=io.StringIO())
    yield
    structlog.reset_defaults()


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.database.close()
