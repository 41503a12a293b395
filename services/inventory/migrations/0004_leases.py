"""Leases: a data center's wish and io_timeout, a host's number and lockspaces, a VM's lease domain.

What exists already goes on without leases until somebody turns them on; every host gets its number now.



"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_leases"
down_revision = "0003_copy_hosts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("data_centers", schema=None) as batch_op:
        batch_op.add_column(sa.Column("leases", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("io_timeout", sa.Integer(), nullable=False, server_default="10"))
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("sanlock_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("lockspaces", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("vms", schema=None) as batch_op:
        batch_op.add_column(sa.Column("lease_domain_id", sa.String(length=36), nullable=True))
        batch_op.create_index(batch_op.f("ix_vms_lease_domain_id"), ["lease_domain_id"], unique=False)
    _number_hosts()


def _number_hosts() -> None:
    """1, 2, 3, ... in each data center, by age."""
    bind = op.get_bind()
    query = (
        "SELECT h.id, c.data_center_id FROM hosts h JOIN clusters c ON c.id = h.cluster_id ORDER BY h.created_at, h.id"
    )
    last: dict[str, int] = {}
    for host_id, center_id in bind.execute(sa.text(query)).all():
        last[center_id] = last.get(center_id, 0) + 1
        update = sa.text("UPDATE hosts SET sanlock_id = :number WHERE id = :id")
        bind.execute(update, {"number": last[center_id], "id": host_id})


def downgrade() -> None:
    with op.batch_alter_table("vms", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_vms_lease_domain_id"))
        batch_op.drop_column("lease_domain_id")
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        batch_op.drop_column("lockspaces")
        batch_op.drop_column("sanlock_id")
    with op.batch_alter_table("data_centers", schema=None) as batch_op:
        batch_op.drop_column("io_timeout")
        batch_op.drop_column("leases")
