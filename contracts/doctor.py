"""What the doctor says: every view of a disk side by side, how they differ, and what a repair would change.

The promises that carry it are in contracts/snapshots.py, whose service makes it.
"""

from __future__ import annotations

from contracts import fields as f
from contracts.inventory import Page, Rows


class DiagnoseDisk(f.Request):
    disk_id = f.uid()


class VolumeViews(f.Fact):
    """One volume, or a foreign file that QEMU or libvirt use (`path`), as each side sees it; null: it does not.

    `qemu`, `libvirt`: writes to it, reads it. `storage`: leaf, chain (below the leaf), aside (legal, in no chain),
    illegal (marked for deletion). `database`: active, chain, aside (known, in no chain), dropped (merged, to be
    deleted). What each has as its parent: `backing_id` QEMU's header, `parent_id` the metadata, `known_parent_id`
    the database."""

    volume_id = f.uid(allow_none=True)
    path = f.text(allow_none=True)
    qemu = f.choice("writes", "reads", allow_none=True)
    storage = f.choice("leaf", "chain", "aside", "illegal", allow_none=True)
    libvirt = f.choice("writes", "reads", allow_none=True)
    database = f.choice("active", "chain", "aside", "dropped", allow_none=True)
    backing_id = f.uid(allow_none=True)
    parent_id = f.uid(allow_none=True)
    known_parent_id = f.uid(allow_none=True)
    actual_size = f.size(allow_none=True)
    snapshot_id = f.uid(allow_none=True)
    description = f.text()


class Difference(f.Fact):
    """`code` is stable; `message` one sentence, `action` the one thing that helps."""

    code = f.text(64)
    volume_id = f.uid(allow_none=True)
    message = f.text()
    action = f.text()


class RepairPlan(f.Fact):
    """What a repair would change, each in a sentence; `possible` false with the `reason`.

    `adopt`, `discard`: volumes that the database does not know and that a person has to name."""

    possible = f.flag()
    reason = f.text(allow_none=True)
    changes = f.words()
    adopt = f.uids()
    discard = f.uids()


class Diagnosis(f.Fact):
    """A disk as QEMU, the storage, libvirt and the database have it, believed in this order. `host_id`: who looked,
    null when nobody could. `rows` first volume first. `digest` stands for all of it, and is what a repair expects."""

    disk_id = f.uid()
    alias = f.text()
    vm_id = f.uid(allow_none=True)
    domain_id = f.uid()
    host_id = f.uid(allow_none=True)
    qemu = f.text(allow_none=True)
    libvirt = f.text(allow_none=True)
    rows = f.many(VolumeViews)
    differences = f.many(Difference)
    repair = f.nested(RepairPlan)
    digest = f.text(64)


class RepairDisk(f.Request):
    """`expect`: the digest of the diagnosis that the person saw. `adopt`: volumes unknown to the database that belong
    to the disk; `discard`: volumes of the disk that nothing needs, to be deleted for good."""

    disk_id = f.uid()
    expect = f.text(64)
    adopt = f.uids(100, load_default=list)
    discard = f.uids(100, load_default=list)


class Repaired(f.Fact):
    """What was changed (nothing: there was nothing to repair any more), and the disk as it is now."""

    disk_id = f.uid()
    changes = f.words()
    diagnosis = f.nested(Diagnosis)


class DiskRepaired(f.Fact):
    """News: the records of a disk were made to follow the storage."""

    disk_id = f.uid()
    vm_id = f.uid(allow_none=True)
    user = f.text()
    changes = f.words()


class DiagnoseDomain(Page):
    """`after`, `limit`: which of the domain's disks are looked at."""

    id = f.uid()
    limit = f.count(1, 200, load_default=100)


class DiskFindings(f.Fact):
    """A disk that differs. `repairable`: `repair_disk` can make the database follow the storage."""

    disk_id = f.uid()
    alias = f.text()
    vm_id = f.uid(allow_none=True)
    differences = f.many(Difference)
    repairable = f.flag()


class Finding(Difference):
    """Something on the domain that belongs to no disk, or that a disk lacks."""

    disk_id = f.uid(allow_none=True)
    path = f.text(allow_none=True)


class DomainDiagnosis(Rows):
    """`items`: those of the `looked_at` disks of this page that differ. `findings` come with the first page: at most
    1000 of `findings_total`. `total` counts all disks of the domain."""

    domain_id = f.uid()
    looked_at = f.count()
    items = f.many(DiskFindings)
    findings = f.many(Finding)
    findings_total = f.count()
