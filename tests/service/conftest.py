"""Real parts for the tests of services: a private RabbitMQ for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import broker
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.databases import database, opened, postgres, url  # noqa: F401  # fixtures


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Broker]:
    """A private broker. Who kills it must start it again."""
    with broker.running() as made:
        yield made


@pytest.fixture
def bus(rabbit: Broker) -> Iterator[Bus]:
    """The test's own place on that broker: it calls, listens and plays providers."""
    with Bus(rabbit.uri) as made:
        yield made
