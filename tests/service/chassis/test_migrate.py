"""Migrations: drafted from the tables, run at every start on both databases, also by two instances at once."""

from __future__ import annotations

import pathlib
import sys
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from chassis import migrate, tables
from chassis.database import Database
from contracts import errors
from tests.fakes.databases import Opened
from tests.fakes.schema import assert_migrated

TABLES = """
import sqlalchemy as sa
from chassis import tables

metadata = sa.MetaData()
tables.add_frame_tables(metadata)
things = sa.Table("things", metadata, sa.Column("id", sa.String(36), primary_key=True),
                  sa.Column("born", tables.UtcTime, nullable=False))
"""


@pytest.fixture
def package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service's package with tables and no migrations yet."""
    folder = tmp_path / "sample_service"
    (folder / "migrations").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "tables.py").write_text(TABLES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "sample_service"
    for name in [name for name in sys.modules if name.startswith("sample_service")]:
        del sys.modules[name]


def folder_of(package: str) -> pathlib.Path:
    module = __import__(package)
    return pathlib.Path(str(module.__file__)).parent / "migrations"


def metadata_of(package: str) -> sa.MetaData:
    return __import__(f"{package}.tables").tables.metadata  # type: ignore[no-any-return]


def test_a_drafted_migration_makes_the_tables(database: Database, package: str) -> None:
    migrate.main([package, "First tables!"])
    made = folder_of(package) / "0001_first_tables.py"
    assert "chassis" not in made.read_text()  # a migration stands for ever; it names no code of ours
    assert_migrated(database, package, metadata_of(package))


def test_the_next_migration_holds_what_changed(database: Database, package: str) -> None:
    migrate.main([package, "first"])
    migrate.upgrade(database, package)
    metadata = metadata_of(package)
    metadata.tables["things"].append_column(sa.Column("weight", sa.Integer))
    assert migrate.differences(database, metadata) != []
    made = migrate.draft(package, "weight", metadata)
    assert made.name == "0002_weight.py"
    assert "create_table" not in made.read_text()
    assert_migrated(database, package, metadata)


def test_two_instances_may_start_at_once(url: str, opened: Opened, package: str) -> None:
    migrate.main([package, "first"])
    faults: list[Exception] = []

    def start() -> None:
        try:
            migrate.upgrade(opened(url), package)
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert migrate.differences(opened(url), metadata_of(package)) == []


def test_a_migration_that_fails_leaves_nothing(database: Database, package: str) -> None:
    path = migrate.draft(package, "first", metadata_of(package))
    whole = path.read_text()
    path.write_text(whole.replace("\n\ndef downgrade", "    raise ZeroDivisionError\n\n\ndef downgrade"))
    with pytest.raises(ZeroDivisionError):
        migrate.upgrade(database, package)
    with database.read() as session:
        assert sa.inspect(session.connection()).get_table_names() == []
    path.write_text(whole)
    assert_migrated(database, package, metadata_of(package))


def test_a_database_of_a_newer_version_is_refused_clearly(database: Database, package: str) -> None:
    path = migrate.draft(package, "first", metadata_of(package))
    migrate.upgrade(database, package)
    path.write_text(path.read_text().replace("'0001_first'", "'0009_other'"))
    with pytest.raises(migrate.SchemaUnknown, match="sample_service cannot use its database"):
        migrate.upgrade(database, package)


def test_a_package_that_does_not_exist_is_named(database: Database) -> None:
    with pytest.raises(ValueError, match="there is no package nowhere"):
        migrate.upgrade(database, "nowhere")


def test_a_database_that_is_away_is_reported(opened: Opened, package: str) -> None:
    with pytest.raises(errors.DatabaseAway):
        migrate.upgrade(opened("sqlite:////dev/null/x"), package)


def test_frame_tables_are_added_once() -> None:
    metadata = sa.MetaData()
    tables.add_frame_tables(metadata)
    tables.add_frame_tables(metadata)
    assert set(tables.frame.tables) == set(metadata.tables)
