"""The test that every service has: its migrations make exactly the tables that its code declares.

def test_migrations_make_the_tables(database):
    assert_migrated(database, "services.inventory", tables.metadata)
"""

from __future__ import annotations

import sqlalchemy as sa

from chassis import migrate
from chassis.database import Database


def assert_migrated(database: Database, package: str, metadata: sa.MetaData) -> None:
    """Migrate an empty database (twice: the second time finds nothing to do) and compare it with the code."""
    migrate.upgrade(database, package)
    migrate.upgrade(database, package)
    assert migrate.differences(database, metadata) == []
