"""Fixtures: the two databases that everything runs on, each real and each empty for every test."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chassis.database import Database
from deploy.stack import postgres as stack


class Postgres(stack.Postgres):
    """The stack's PostgreSQL, with a new database for whoever wants one."""

    def fresh(self) -> str:
        """An empty database; answers its address."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private PostgreSQL for the whole run. Who kills it must start it again."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ds-pg-", dir="/tmp"))
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        server.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """The address of an empty database; each test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.fresh()


Opened = Callable[..., Database]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """opened(url, ...): a Database that is closed with the test."""
    made: list[Database] = []

    def open_one(url: str, *arguments: Any, **options: Any) -> Database:
        made.append(Database(url, *arguments, **options))
        return made[-1]

    yield open_one
    for each in made:
        each.close()


@pytest.fixture
def database(url: str, opened: Opened) -> Database:
    """An empty database, open."""
    return opened(url, service="test")
