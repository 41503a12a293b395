"""The frame's own tables, which every service's MetaData includes: add_frame_tables(metadata).

Queries use the tables of this module; the service's copies exist so that its migrations create them.
"""

from __future__ import annotations

import datetime
from typing import Any

import sqlalchemy as sa


class UtcTime(sa.types.TypeDecorator[datetime.datetime]):
    """A point in time, always UTC and aware; SQLite forgets the zone, so it is put back on the way out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, dialect: Any) -> datetime.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        value = value.astimezone(datetime.UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime.datetime | None, dialect: Any) -> datetime.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


frame = sa.MetaData()

# One row per durable flow. `claim` is raised by each new claim and compared by every write of its owner; lease
# times are the database's. `wakes` is bumped to wake an owner in another process.
flows = sa.Table(
    "flows",
    frame,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("user", sa.String(255), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("step", sa.String(64), nullable=False),
    sa.Column("past", sa.Boolean, nullable=False),
    sa.Column("undoing", sa.Boolean, nullable=False),
    sa.Column("asks", sa.Integer, nullable=False),
    sa.Column("claim", sa.Integer, nullable=False),
    sa.Column("claimed_by", sa.String(255)),
    sa.Column("lease_until", UtcTime),
    sa.Column("wakes", sa.Integer, nullable=False),
    sa.Column("cancel_by", sa.String(255)),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("action", sa.Text),
    sa.Column("progress", sa.JSON(none_as_null=True)),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Index("flows_by_state", "state", "lease_until"),
    sa.Index("flows_by_subject", "subject", "kind"),
    sa.Index("flows_by_claim", "claim"),
)


# News that wait for the broker, in the order they were told. `writer` is the process that told them: it publishes
# them at once; others only take over what got old (see outbox.py).
outbox = sa.Table(
    "outbox",
    frame,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("message_id", sa.String(64), nullable=False),
    sa.Column("exchange", sa.String(128), nullable=False),
    sa.Column("routing_key", sa.String(255), nullable=False),
    sa.Column("headers", sa.JSON, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("writer", sa.String(255), nullable=False),
    sa.Column("told_at", UtcTime, nullable=False),
)

# Messages that were handled; a second delivery finds its row and does nothing.
inbox = sa.Table(
    "inbox",
    frame,
    sa.Column("message_id", sa.String(64), primary_key=True),
    sa.Column("heard_at", UtcTime, nullable=False),
    sa.Index("inbox_by_time", "heard_at"),
)


def add_frame_tables(metadata: sa.MetaData) -> None:
    """Add the frame's tables to a service's MetaData, so that its migrations hold them."""
    for table in frame.sorted_tables:
        if table.name not in metadata.tables:
            table.to_metadata(metadata)
