"""The real service on the real bus, its peers played."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.bus import Bus
from tests.fakes.process import Process
from tests.fakes.site import Site


@pytest.fixture
def site(bus: Bus) -> Iterator[Site]:
    made = Site(bus)
    yield made
    made.end()


@pytest.fixture
def host(site: Site) -> FakeAgent:
    return site.host()


@pytest.fixture
def start(site: Site, tmp_path: pathlib.Path) -> Callable[..., Process]:
    """start(merges_per_host=1): the service on SQLite."""
    return lambda **settings: site.service(f"sqlite:///{tmp_path}/s.sqlite", tmp_path / "s", **settings)


@pytest.fixture
def running(start: Callable[..., Process]) -> Process:
    return start()
