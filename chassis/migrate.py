"""Alembic for each service, without per-service glue: `services/<x>/migrations/NNNN_words.py` is all there is.

upgrade(database, "services.inventory")            at every start; safe when two instances start at once
python -m chassis.migrate services.inventory "mac pools"      drafts the next migration from tables.py
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import re
import sys
import tempfile
from typing import Any

import sqlalchemy as sa
from alembic import autogenerate
from alembic import util as alembic_util
from alembic.autogenerate import api as drafting
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from chassis.database import Database
from chassis.tables import UtcTime

_LOCK = 0x64727973  # "drys": PostgreSQL's advisory lock of whoever migrates


class SchemaUnknown(Exception):
    """The database was migrated by a newer version of the service than this one."""


def upgrade(database: Database, package: str) -> None:
    """Bring the database to the newest migration of `package`, all or nothing, in one write transaction.

    Raises DatabaseAway, and SchemaUnknown when the database is ahead of this code.
    """
    config, script = _open(package)
    with database.write() as session:
        connection = session.connection()
        if not database.is_sqlite:  # on SQLite the write transaction itself excludes the others
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        try:
            _run(config, script, connection, lambda revision, _: script._upgrade_revs("heads", revision))
        except alembic_util.CommandError as problem:
            raise SchemaUnknown(f"{package} cannot use its database: {problem}") from problem


def differences(database: Database, metadata: sa.MetaData) -> list[Any]:
    """What the migrated database lacks or has too much, compared with the tables in the code; empty is right."""
    with database.write() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        return list(autogenerate.compare_metadata(context, metadata))


def draft(package: str, message: str, metadata: sa.MetaData) -> pathlib.Path:
    """Write the next migration of `package`: what turns its present migrations into `metadata`. Read it through."""
    config, script = _open(package)
    number = len(list(script.walk_revisions())) + 1
    name = f"{number:04d}_" + re.sub(r"\W+", "_", message.lower()).strip("_")
    revisions = drafting.RevisionContext(config, script, _arguments(script, message, name))

    def compare(revision: Any, context: Any) -> list[Any]:
        revisions.run_autogenerate(revision, context)
        return []

    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/draft.sqlite")
        upgrade(database, package)
        with database.write() as session:
            options = {"target_metadata": metadata, "compare_type": True, "render_item": _render}
            _run(config, script, session.connection(), compare, **options)
        database.close()
    made = [made for made in revisions.generate_scripts() if made is not None]
    return pathlib.Path(made[0].path)


def _render(kind: str, item: Any, _context: Any) -> str | bool:
    """A migration stands for ever, so it names SQLAlchemy's types, never ours."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcTime) else False


def _arguments(script: ScriptDirectory, message: str, name: str) -> dict[str, Any]:
    return {
        "message": message,
        "sql": False,
        "head": "head",
        "splice": False,
        "branch_label": None,
        "version_path": str(script.versions),
        "rev_id": name,
        "depends_on": None,
        "autogenerate": True,
    }


def _open(package: str) -> tuple[Config, ScriptDirectory]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"there is no package {package}")
    versions = pathlib.Path(next(iter(spec.submodule_search_locations))) / "migrations"
    config = Config()
    config.set_main_option("script_location", str(pathlib.Path(__file__).parent / "templates"))
    config.set_main_option("version_locations", str(versions).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("file_template", "%%(rev)s")
    return config, ScriptDirectory.from_config(config)


def _run(config: Config, script: ScriptDirectory, connection: sa.Connection, do: Any, **options: Any) -> None:
    with EnvironmentContext(config, script, fn=do) as environment:
        # transactional_ddl: the caller's transaction holds everything, also on SQLite
        options = {"target_metadata": None, "render_as_batch": True, "transactional_ddl": True, **options}
        environment.configure(connection=connection, **options)
        environment.run_migrations()


def main(arguments: list[str]) -> None:
    package, message = arguments
    tables = importlib.import_module(f"{package}.tables")
    print(draft(package, message, tables.metadata))  # noqa: T201  a command: this is its answer


if __name__ == "__main__":
    main(sys.argv[1:])
