"""The disk snapshots of a storage domain in one list, and what is odd on it.

The promises that carry it are in contracts/snapshots.py, whose service keeps it.
"""

from __future__ import annotations

from contracts import fields as f

SORTS = (
    *("taken_at", "made_at", "size", "returns", "depth", "layers"),
    *("vm_name", "alias", "description", "state", "reason"),
)
STATES = ("ok", "creating", "removing", "busy", "damaged")
MAX_CURSOR = 2048  # characters: it carries the value of the last row, a name for one


class DiskSnapshotFilter(f.Request):
    """All that is named must hold. `text`: in the description, the disk's alias or the VM's name, whatever its case.
    `taken_before`: the snapshot is older. `min_size`: of its volume, in bytes; `min_depth`: see DiskSnapshotRow."""

    vm_id = f.uid(load_default=None, allow_none=True)
    text = f.text(255, load_default=None, allow_none=True)
    taken_before = f.time(load_default=None, allow_none=True)
    min_size = f.size(load_default=None, allow_none=True)
    min_depth = f.count(load_default=None, allow_none=True)
    state = f.choice(*STATES, load_default=None, allow_none=True)
    removable = f.flag(load_default=None, allow_none=True)


class ListDiskSnapshots(DiskSnapshotFilter):
    """A page of the disk snapshots of storage domain `id`. `sort`: a column, a minus before it turns it round;
    long texts go by their first 200 characters. A cursor belongs to the sort that it was got with."""

    id = f.uid()
    sort = f.choice(*SORTS, *(f"-{name}" for name in SORTS), load_default="-size")
    after = f.text(MAX_CURSOR, load_default=None, allow_none=True)
    limit = f.count(1, 1000, load_default=100)


class ListedDiskSnapshots(DiskSnapshotFilter):
    """What such a list of storage domain `domain_id` shows on all its pages; a removal takes it."""

    domain_id = f.uid()


class DiskSnapshotRow(f.Fact):
    """One disk of one snapshot. `made_at`: when its volume was created, `size`: what that takes, both null until it was
    seen; `returns`: at most so many bytes come
    back when it is removed (the volume above goes down into this one; what the plan of a removal says is at least).
    `depth`: how many volumes lie below it, `layers`: how many the whole chain has. `removable`, or `reason` why not."""

    volume_id = f.uid()
    snapshot_id = f.uid()
    disk_id = f.uid()
    domain_id = f.uid()
    vm_id = f.uid(allow_none=True)
    vm_name = f.text()
    alias = f.text()
    description = f.text()
    taken_at = f.time()
    made_at = f.time(allow_none=True, load_default=None)
    size = f.size(allow_none=True)
    returns = f.size(allow_none=True)
    depth = f.count()
    layers = f.count(1)
    state = f.choice(*STATES)
    removable = f.flag()
    reason = f.text(allow_none=True)


class DiskSnapshotRows(f.Fact):
    """`total`, `size` and `returns` are of the whole filter, sizes of what was seen. `scanned_at`: when the storage was
    last looked at for this list, null: never."""

    items = f.many(DiskSnapshotRow)
    next = f.text(MAX_CURSOR, allow_none=True)
    total = f.count()
    size = f.size()
    returns = f.size()
    scanned_at = f.time(allow_none=True)


class ListLeftovers(f.Request):
    """A page of what is odd on storage domain `id`."""

    id = f.uid()
    after = f.text(256, load_default=None, allow_none=True)
    limit = f.count(1, 1000, load_default=100)


class Leftover(f.Fact):
    """`code`: deep_chain (more `layers` than the setting deep_chain allows), volume_without_disk, or one of the
    doctor's findings (folder_without_disk, foreign_file, half_deleted, damaged_volume, disk_without_folder). `action`
    is the one thing that helps; nothing is done by itself. `size` in bytes where it is known."""

    code = f.text(64)
    message = f.text()
    action = f.text()
    disk_id = f.uid(allow_none=True)
    volume_id = f.uid(allow_none=True)
    path = f.text(allow_none=True)
    size = f.size(allow_none=True)


class Leftovers(f.Fact):
    items = f.many(Leftover)
    next = f.text(256, allow_none=True)
    total = f.count()
    scanned_at = f.time(allow_none=True)


class RebuiltOverview(f.Fact):
    """What was made anew from the books and a scan of the storage."""

    domain_id = f.uid()
    disks = f.count()
    disk_snapshots = f.count()
    leftovers = f.count()
    scanned_at = f.time()
