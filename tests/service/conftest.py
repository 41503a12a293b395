"""Real parts for the tests of services: a private RabbitMQ for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.bus import Bus
from tests.fakes.databases import database, opened, postgres, url  # noqa: F401  # fixtures
from tests.fakes.rabbitmq import Rabbit


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """A private broker. Who kills it must start it again."""
    broker = Rabbit()
    try:
        yield broker.start()
    finally:
        broker.stop()


@pytest.fixture
def bus(rabbit: Rabbit) -> Iterator[Bus]:
    """The test's own place on that broker: it calls, listens and plays providers."""
    with Bus(rabbit.uri) as made:
        yield made
