"""A new volume to which no QEMU ever switched is deleted though it counts; one that may hold something is not."""

from __future__ import annotations

import struct

import pytest

from contracts import errors
from services.hostagent import qcow2
from tests.unit.hostagent.storage.room import qemu_chain, run

POINTS = [
    "volume.discard.after_scan",
    "volume.discard.renamed.data",
    "volume.discard.marked",
    "volume.discard.renamed.meta",
    "volume.discard.removed.data",
]


def drop(disk, volume, stands_on):
    disk.storage.discard(disk.domain, disk.image, volume, stands_on=stands_on)


def test_an_empty_leaf_above_what_qemu_writes_to_goes_with_all_its_files(disk):
    v1, v2 = disk.chain("v1", "v2")
    with pytest.raises(errors.VolumeInUse, match="not marked illegal"):
        disk.discard(v2)
    for _ in range(2):
        drop(disk, v2, v1)
    assert disk.files() == [v1, f"{v1}.lease", f"{v1}.meta"]
    assert (disk.leaf, disk.facts(v1)["volume_type"]) == (v1, "leaf")


@pytest.mark.parametrize("point", POINTS)
def test_one_whose_deletion_died_is_deleted_by_a_repetition_without_qemus_word(point, die_at, disk):
    """Its mark is written when its data file has no name any more; only before that it may still become somebody's."""
    v1, v2 = disk.chain("v1", "v2")
    die_at(point, "discard", domain=disk.domain, image=disk.image, volume=v2, stands_on=v1)
    legal = disk.leaf == v2
    assert legal is (point == "volume.discard.after_scan")
    assert disk.leaf in (v1, v2) or point == "volume.discard.renamed.data"
    drop(disk, v2, v1 if legal else None)
    assert disk.files() == [v1, f"{v1}.lease", f"{v1}.meta"]
    assert (disk.leaf, len(qemu_chain(disk.folder / v1))) == (v1, 1)


def test_one_into_which_something_was_written_stays(disk):
    v1, v2 = disk.chain("v1", "v2")
    run("qemu-io", "-c", "write -P 7 0 4k", str(disk.folder / v2))
    with pytest.raises(errors.VolumeInUse, match="something was written"):
        drop(disk, v2, v1)
    assert (disk.leaf, disk.facts(v2)["legality"]) == (v2, "legal")


def test_one_with_an_internal_snapshot_stays(disk):
    v1, v2 = disk.chain("v1", "v2")
    run("qemu-img", "snapshot", "-c", "mine", str(disk.folder / v2))
    with pytest.raises(errors.VolumeInUse, match="something was written"):
        drop(disk, v2, v1)


def test_one_that_a_qemu_opened_meanwhile_stays_and_counts(disk, open_in_qemu):
    v1, v2 = disk.chain("v1", "v2")
    open_in_qemu(disk.folder / v2)
    with pytest.raises(errors.VolumeInUse, match="image lock"):
        drop(disk, v2, v1)
    assert (disk.leaf, disk.facts(v2)["legality"]) == (v2, "legal")


def test_only_the_leaf_right_above_what_qemu_writes_to_may_go(disk, ids):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    for volume, stands_on in ((v2, v1), (v3, v1), (v3, ids.nobody), (v1, v1)):
        with pytest.raises(errors.VolumeInUse):
            drop(disk, volume, stands_on)
    assert disk.leaf == v3
    with pytest.raises(errors.BadRequest, match="Not a UUID"):
        drop(disk, v3, "../v2")


def head(*, version=3, entries=2, offset=196608, snapshots=0):
    return struct.pack(
        ">4sIQIIQIIQQIIQ", qcow2.MAGIC, version, 0, 0, 16, 2**30, 0, entries, offset, 65536, 1, snapshots, 0
    )


@pytest.mark.parametrize(
    ("head", "table"),
    [
        (head(), (196608, 16)),
        (head(version=2, entries=1), (196608, 8)),
        (head(version=4), None),
        (head(snapshots=1), None),
        (head(entries=2**31), None),
        (head()[:40], None),
        (b"\0" * 512, None),
    ],
)
def test_the_first_table_is_found_or_nothing_is_said(head, table):
    assert qcow2.first_table(head) == table
