"""offline"""

import sqlalchemy as sa
from alembic import op

revision = "0005_offline"
down_revision = "0004_overview"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # in place: SQLite would make the table anew for anything else, which the rows that refer to it forbid
    op.add_column("jobs", sa.Column("offline", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    op.drop_column("jobs", "offline")
