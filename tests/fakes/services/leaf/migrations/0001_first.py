"""All tables."""

from alembic import op

from tests.fakes.services.leaf.tables import metadata

revision = "0001_first"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
