"""What this service keeps. One fact, one place: which snapshot a volume belongs to is in `snapshot_disks` alone.

disks            a disk that snapshots has met, and its active volume
volumes          its chain; a `dropped` volume is merged and waits for its deletion
snapshots        what a user took
snapshot_disks   the volume that holds a disk as it was
jobs             every flow as users see it (a waiting merge has no flow yet)
merges           what is special about one merge of a disk
removal_items    what a removal is to remove, one disk of one snapshot each; which merge does it is said here alone
disk_locks       one job per disk
overview         one row per disk snapshot, made from the above; rows of a disk are made anew with each change of it
vm_names         of inventory's VMs, for the overview
leftovers        what the last scan of a domain found that nothing refers to, or that is odd
scans            when that was
rescans          when a scan that comes by itself was last begun, by whichever instance
gate             one row that is locked while merges are let in, so that the limits hold with many instances
"""

from __future__ import annotations

import sqlalchemy as sa

from chassis.tables import UtcTime, add_frame_tables

metadata = sa.MetaData()
add_frame_tables(metadata)

_ID = sa.String(36)
_BYTES = sa.BigInteger

WORDS = 200  # characters of a long text by which rows are sorted
LONG = {"description": "description_start", "reason": "reason_start"}

disks = sa.Table(
    "disks",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("vm_id", _ID, index=True),
    sa.Column("alias", sa.String(255), nullable=False),
    sa.Column("domain_id", _ID, nullable=False),
    sa.Column("active_id", _ID, nullable=False),
)

volumes = sa.Table(
    "volumes",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("disk_id", _ID, sa.ForeignKey("disks.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("parent_id", _ID),
    sa.Column("dropped", sa.Boolean, nullable=False),
    sa.Column("actual_size", _BYTES),
    sa.Column("created_at", UtcTime),
)

snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("vm_id", _ID, nullable=False),
    sa.Column("description", sa.String(1024), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("restorable", sa.Boolean, nullable=False),
    sa.Column("partly_removed", sa.Boolean, nullable=False),
    sa.Column("quiesced", sa.Boolean, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Column("job_id", _ID),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Index("snapshots_by_vm", "vm_id", "created_at", "id"),
    sa.Index("snapshots_by_time", "created_at", "id"),
)

snapshot_disks = sa.Table(
    "snapshot_disks",
    metadata,
    sa.Column("snapshot_id", _ID, sa.ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("disk_id", _ID, sa.ForeignKey("disks.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("volume_id", _ID, nullable=False, unique=True),
    sa.Index("snapshot_disks_by_disk", "disk_id"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("parent_id", _ID, index=True),
    sa.Column("vm_id", _ID),
    sa.Column("snapshot_id", _ID),
    sa.Column("disk_id", _ID),
    sa.Column("user", sa.String(255), nullable=False),
    sa.Column("description", sa.String(4096), nullable=False),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("step", sa.String(64), nullable=False),
    sa.Column("past", sa.Boolean, nullable=False),
    sa.Column("cancelling", sa.Boolean, nullable=False),
    sa.Column("cur", _BYTES, nullable=False),
    sa.Column("end", _BYTES, nullable=False),
    sa.Column("rate", _BYTES, nullable=False),
    sa.Column("behind", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("offline", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("action", sa.Text),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("finished_at", UtcTime),
    sa.Column("told_at", UtcTime),
    sa.Index("jobs_by_time", "created_at", "id"),
    sa.Index("jobs_by_vm", "vm_id", "created_at", "id"),
    sa.Index("jobs_by_state", "state", "created_at", "id"),
)

merges = sa.Table(
    "merges",
    metadata,
    sa.Column("id", _ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("removal_id", _ID, nullable=False, index=True),
    sa.Column("vm_id", _ID, nullable=False),
    sa.Column("disk_id", _ID, nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("base_id", _ID, nullable=False),
    sa.Column("top_id", _ID, nullable=False),
    sa.Column("child_id", _ID),
    sa.Column("between", sa.JSON, nullable=False),
    sa.Column("pull", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("below_id", _ID),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("host_id", _ID, nullable=False),
    sa.Column("domain_id", _ID, nullable=False),
    sa.Column("domain_path", sa.String(1024), nullable=False),
    sa.Column("reserve", _BYTES, nullable=False),
    sa.Column("bandwidth", _BYTES, nullable=False),
    sa.Column("let_in", sa.Boolean, nullable=False),
    sa.Column("planned", sa.Boolean, nullable=False),
    sa.Column("copy_bytes", _BYTES, nullable=False),
    sa.Column("needs", _BYTES, nullable=False),
    sa.Column("returns", _BYTES, nullable=False),
    sa.Column("before", _BYTES, nullable=False),
    sa.Column("bytes_merged", _BYTES, nullable=False),
    sa.Column("bytes_returned", _BYTES, nullable=False),
    sa.Column("stall", sa.JSON(none_as_null=True)),
    sa.Column("recorded", sa.Boolean, nullable=False),
    sa.Column("discarded", sa.Boolean, nullable=False),
)

removal_items = sa.Table(
    "removal_items",
    metadata,
    sa.Column("removal_id", _ID, primary_key=True),
    sa.Column("snapshot_id", _ID, primary_key=True),
    sa.Column("disk_id", _ID, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("vm_id", _ID, nullable=False),
    sa.Column("description", sa.String(1024), nullable=False),
    sa.Column("merge_id", _ID, index=True),
    sa.Column("refusal", sa.JSON(none_as_null=True)),
)

disk_locks = sa.Table(
    "disk_locks",
    metadata,
    sa.Column("disk_id", _ID, primary_key=True),
    sa.Column("flow_id", _ID, nullable=False, index=True),
    sa.Column("vm_id", _ID, nullable=False, index=True),
)

gate = sa.Table("gate", metadata, sa.Column("id", sa.Integer, primary_key=True))

overview = sa.Table(
    "overview",
    metadata,
    sa.Column("volume_id", _ID, primary_key=True),
    sa.Column("snapshot_id", _ID, nullable=False),
    sa.Column("disk_id", _ID, nullable=False, index=True),
    sa.Column("domain_id", _ID, nullable=False),
    sa.Column("vm_id", _ID, index=True),
    sa.Column("vm_name", sa.String(255), nullable=False),
    sa.Column("alias", sa.String(255), nullable=False),
    sa.Column("description", sa.String(1024), nullable=False),
    sa.Column("taken_at", UtcTime, nullable=False),
    sa.Column("size", _BYTES, nullable=False),  # -1: not seen yet; so that a cursor can stand on it
    sa.Column("returns", _BYTES, nullable=False),
    sa.Column("depth", sa.Integer, nullable=False),
    sa.Column("layers", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("made_at", UtcTime, nullable=False),  # the volume; 1970: not seen yet
    # PostgreSQL has no index over longer texts
    *(sa.Column(name, sa.String(WORDS), nullable=False) for name in LONG.values()),
    # One for each sort, and one that answers the sums of a domain alone.
    *(
        sa.Index(f"overview_by_{name}", "domain_id", name, "volume_id")
        for name in ("taken_at", "made_at", "size", "returns", "depth", "layers", "vm_name", "alias", "state")
    ),
    *(sa.Index(f"overview_by_{name}", "domain_id", name, "volume_id") for name in LONG.values()),
    sa.Index("overview_by_vm", "domain_id", "vm_id", "size", "volume_id"),
    sa.Index("overview_sums", "domain_id", "size", "returns"),
)

vm_names = sa.Table(
    "vm_names", metadata, sa.Column("id", _ID, primary_key=True), sa.Column("name", sa.String(255), nullable=False)
)

leftovers = sa.Table(
    "leftovers",
    metadata,
    sa.Column("domain_id", _ID, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("code", sa.String(64), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("disk_id", _ID, index=True),
    sa.Column("volume_id", _ID),
    sa.Column("path", sa.Text),
    sa.Column("size", _BYTES),
)

scans = sa.Table(
    "scans", metadata, sa.Column("domain_id", _ID, primary_key=True), sa.Column("scanned_at", UtcTime, nullable=False)
)

rescans = sa.Table(
    "rescans", metadata, sa.Column("domain_id", _ID, primary_key=True), sa.Column("begun_at", UtcTime, nullable=False)
)
