"""removals of many"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003_removals_of_many"
down_revision = "0002_behind"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "removal_items",
        sa.Column("removal_id", sa.String(length=36), nullable=False),
        sa.Column("snapshot_id", sa.String(length=36), nullable=False),
        sa.Column("disk_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=False),
        sa.Column("description", sa.String(length=1024), nullable=False),
        sa.Column("merge_id", sa.String(length=36), nullable=True),
        sa.Column("refusal", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("removal_id", "snapshot_id", "disk_id"),
    )
    with op.batch_alter_table("removal_items", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_removal_items_merge_id"), ["merge_id"], unique=False)

    # SQLite changes a table by dropping and renaming it, which rows that refer to it would forbid: merges step aside
    merges = _take_merges()
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.alter_column("vm_id", existing_type=sa.VARCHAR(length=36), nullable=True)
    with op.batch_alter_table("merges", schema=None) as batch_op:
        batch_op.add_column(sa.Column("position", sa.Integer(), nullable=False))
        batch_op.add_column(sa.Column("between", sa.JSON(), nullable=False))
        batch_op.drop_column("snapshot_id")
    _put_merges(merges)


def _take_merges() -> list[dict[str, Any]]:
    connection = op.get_bind()
    merges = sa.Table("merges", sa.MetaData(), autoload_with=connection)
    rows = [dict(row) for row in connection.execute(sa.select(merges)).mappings()]
    connection.execute(merges.delete())
    return rows


def _put_merges(rows: list[dict[str, Any]]) -> None:
    """Back, each with the one snapshot that it removes as an item of its removal."""
    connection = op.get_bind()
    found = sa.MetaData()
    merges = sa.Table("merges", found, autoload_with=connection)
    items = sa.Table("removal_items", found, autoload_with=connection)
    for number, row in enumerate(rows):
        snapshot_id = row.pop("snapshot_id")
        connection.execute(merges.insert().values(**row, position=1, between=[]))
        own = {"merge_id": row["id"], **{name: row[name] for name in ("removal_id", "disk_id", "vm_id")}}
        bare = {"number": number, "place": 0, "description": ""}
        connection.execute(items.insert().values(**own, **bare, snapshot_id=snapshot_id))


def downgrade() -> None:
    raise NotImplementedError("a merge of several snapshots does not fit into the tables of before")
