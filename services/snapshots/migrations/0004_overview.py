"""overview"""

import sqlalchemy as sa
from alembic import op

revision = "0004_overview"
down_revision = "0003_removals_of_many"
branch_labels = None
depends_on = None

_SORTS = ("taken_at", "size", "returns", "depth", "layers", "vm_name", "alias", "state")


# budget: one statement per table
def upgrade() -> None:
    op.create_table(
        "overview",
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("snapshot_id", sa.String(length=36), nullable=False),
        sa.Column("disk_id", sa.String(length=36), nullable=False),
        sa.Column("domain_id", sa.String(length=36), nullable=False),
        sa.Column("vm_id", sa.String(length=36), nullable=True),
        sa.Column("vm_name", sa.String(length=255), nullable=False),
        sa.Column("alias", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=1024), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("returns", sa.BigInteger(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("layers", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("volume_id"),
    )
    with op.batch_alter_table("overview", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_overview_disk_id"), ["disk_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_overview_vm_id"), ["vm_id"], unique=False)
        for name in _SORTS:
            batch_op.create_index(f"overview_by_{name}", ["domain_id", name, "volume_id"], unique=False)
        batch_op.create_index("overview_by_vm", ["domain_id", "vm_id", "size", "volume_id"], unique=False)
        batch_op.create_index("overview_sums", ["domain_id", "size", "returns"], unique=False)
    op.create_table(
        "vm_names",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "leftovers",
        sa.Column("domain_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("disk_id", sa.String(length=36), nullable=True),
        sa.Column("volume_id", sa.String(length=36), nullable=True),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("domain_id", "number"),
    )
    with op.batch_alter_table("leftovers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_leftovers_disk_id"), ["disk_id"], unique=False)
    op.create_table(
        "scans",
        sa.Column("domain_id", sa.String(length=36), nullable=False),
        sa.Column("scanned_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("domain_id"),
    )


def downgrade() -> None:
    for name in ("scans", "leftovers", "vm_names", "overview"):
        op.drop_table(name)
