"""the host that copies a disk"""

import sqlalchemy as sa
from alembic import op

revision = "0003_copy_hosts"
down_revision = "0002_templates"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("disks", schema=None) as batch_op:
        batch_op.add_column(sa.Column("host_id", sa.String(length=36), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("disks", schema=None) as batch_op:
        batch_op.drop_column("host_id")
