"""seen"""

import sqlalchemy as sa
from alembic import op

revision = "0006_seen"
down_revision = "0005_offline"
branch_labels = None
depends_on = None

_STARTS = ("description_start", "reason_start")


def upgrade() -> None:
    zone = "+00" if op.get_bind().dialect.name == "postgresql" else ""
    unseen = f"1970-01-01 00:00:00.000000{zone}"
    op.add_column("volumes", sa.Column("created_at", sa.DateTime(timezone=True), nullable=True))
    made = sa.Column("made_at", sa.DateTime(timezone=True), nullable=False, server_default=unseen)
    op.add_column("overview", made)
    for name in _STARTS:
        op.add_column("overview", sa.Column(name, sa.String(length=200), nullable=False, server_default=""))
    op.execute(
        "update overview set description_start = substr(description, 1, 200),"
        " reason_start = substr(coalesce(reason, ''), 1, 200)"
    )
    for name in ("made_at", *_STARTS):
        op.create_index(f"overview_by_{name}", "overview", ["domain_id", name, "volume_id"])
    op.create_table(
        "rescans",
        sa.Column("domain_id", sa.String(length=36), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("domain_id"),
    )


def downgrade() -> None:
    op.drop_table("rescans")
    for name in ("made_at", *_STARTS):
        op.drop_index(f"overview_by_{name}", "overview")
        op.drop_column("overview", name)
    op.drop_column("volumes", "created_at")
