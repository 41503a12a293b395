"""pulls"""

import sqlalchemy as sa
from alembic import op

revision = "0007_pulls"
down_revision = "0006_seen"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("merges", schema=None) as batch_op:
        batch_op.add_column(sa.Column("pull", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column("below_id", sa.String(length=36), nullable=True))
        batch_op.add_column(sa.Column("note", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("merges", schema=None) as batch_op:
        batch_op.drop_column("note")
        batch_op.drop_column("below_id")
        batch_op.drop_column("pull")
