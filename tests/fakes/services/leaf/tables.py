import sqlalchemy as sa

from chassis.tables import add_frame_tables

metadata = sa.MetaData()
add_frame_tables(metadata)
said = sa.Table(
    "said",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("text", sa.String(200), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("caller", sa.String(200), nullable=False),
)
# one row for each time that an `echo` with an id took effect; nothing but the leaf's own look keeps it at one
effect = sa.Table(
    "effect",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(100), nullable=False),
    sa.Column("text", sa.String(200), nullable=False),
)
