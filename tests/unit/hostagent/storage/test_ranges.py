"""A range of volumes that went down into one base in one job: its marks, its record, its deletion."""

from __future__ import annotations

import pytest

from contracts import errors
from tests.unit.hostagent.storage.room import run

RANGE = [
    "volume.record.after_top",
    "volume.record.after_between",
    "volume.record.after_child",
    "volume.record.after_base",
]


@pytest.mark.parametrize("point", RANGE)
def test_an_internal_range_is_recorded_whatever_dies(point, die_at, disk):
    v1, v2, v3, v4, v5 = disk.chain("v1", "v2", "v3", "v4", "v5")
    disk.rebase(v5, v1)
    ends = {"base": v1, "top": v4, "child": v5, "between": [v3, v2]}
    assert disk.leaf == v5  # before it is recorded, too
    die_at(point, "record_merge", domain=disk.domain, image=disk.image, **ends, concluded=True)
    assert disk.leaf == v5
    assert disk.storage.put_back(disk.domain, disk.image) == {}
    disk.storage.record_merge(disk.domain, disk.image, **ends)
    assert disk.leaf == v5
    assert [disk.facts(one)["legality"] for one in (v1, v2, v3, v4)] == ["legal", "illegal", "illegal", "illegal"]
    assert disk.facts(v5)["parent_id"] == v1


@pytest.mark.parametrize("point", RANGE)
def test_an_active_range_has_one_leaf_whatever_dies(point, die_at, disk):
    """The mark of top is one write: with it what lies between is passed over, and base is the leaf."""
    v1, v2, v3, v4 = disk.chain("v1", "v2", "v3", "v4")
    disk.storage.prepare_mark(disk.domain, disk.image, v4, "illegal", v1)
    assert disk.leaf == v4
    disk.storage.mark(disk.domain, disk.image, v4, "illegal", v1)
    assert disk.leaf == v1
    ends = {"base": v1, "top": v4, "child": None, "between": [v3, v2]}
    die_at(point, "record_merge", domain=disk.domain, image=disk.image, **ends)
    assert disk.leaf == v1
    disk.storage.record_merge(disk.domain, disk.image, **ends)
    assert disk.facts(v1)["volume_type"] == "leaf"
    disk.discard(v4)
    assert disk.leaf == v1
    assert {disk.facts(one)["legality"] for one in (v2, v3)} == {"illegal"}


def test_the_mark_of_a_range_keeps_the_size_of_the_format_whatever_the_description(disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    meta = disk.folder / f"{v3}.meta"
    text = meta.read_text()
    meta.write_text(text.replace("DESCRIPTION=", "DESCRIPTION=" + "d" * (512 - len(text.encode()))))
    disk.storage.mark(disk.domain, disk.image, v3, "illegal", v1)
    assert f"HEIR={v1}\n" in meta.read_text()
    assert (disk.leaf, disk.facts(v2)["legality"]) == (v1, "legal")


def test_an_heir_that_is_no_volume_is_damage(disk):
    _v1, v2 = disk.chain("v1", "v2")
    meta = disk.folder / f"{v2}.meta"
    meta.write_text("HEIR=../../etc\n" + meta.read_text())
    assert disk.leaf is None
    assert "HEIR is '../../etc', not a UUID" in disk.view()["problem"]


def merged_range(disk):
    """v1 <- v2 <- v3 <- v4 after v2 to v4 went down into v1 in one job."""
    v1, *dropped = disk.chain("v1", "v2", "v3", "v4")
    disk.storage.mark(disk.domain, disk.image, dropped[-1], "illegal", v1)
    disk.storage.record_merge(disk.domain, disk.image, v1, dropped[-1], None, between=dropped[-2::-1])
    return v1, dropped[::-1]


def test_a_dropped_range_is_deleted_from_the_top_in_one_go(disk, storage, domain):
    v1, dropped = merged_range(disk)
    for _ in range(2):
        storage.discard(domain, disk.image, dropped[0], dropped[1:])
    assert [volume["volume_id"] for volume in disk.view()["volumes"]] == [v1]
    assert disk.files() == [v1, f"{v1}.lease", f"{v1}.meta"]


@pytest.mark.parametrize("point", ["volume.discard.renamed.data", "volume.discard.removed.data"])
def test_a_range_whose_deletion_died_is_deleted_by_asking_again(point, die_at, disk, storage, domain):
    v1, dropped = merged_range(disk)
    die_at(point, "discard", domain=domain, image=disk.image, volume=dropped[0], below=dropped[1:])
    storage.discard(domain, disk.image, dropped[0], dropped[1:])
    assert disk.files() == [v1, f"{v1}.lease", f"{v1}.meta"]
    assert disk.leaf == v1


def test_one_volume_of_a_range_that_is_used_keeps_all_of_it(disk, other_disk, storage, domain):
    _, dropped = merged_range(disk)
    other_disk.folder.mkdir()
    name = f"../{disk.image}/{dropped[1]}"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", "clone", cwd=other_disk.folder)
    with pytest.raises(errors.VolumeInUse, match="clone"):
        storage.discard(domain, disk.image, dropped[0], dropped[1:])
    assert len(disk.files()) == 12


def test_a_range_with_a_volume_that_nobody_dropped_is_kept(disk, storage, domain):
    v1, dropped = merged_range(disk)
    disk.mark(dropped[2], "legal")
    with pytest.raises(errors.VolumeInUse, match="not marked illegal"):
        storage.discard(domain, disk.image, dropped[0], dropped[1:])
    assert len(disk.files()) == 12
    assert v1 in disk.files()


def test_the_wrong_order_is_refused(disk, storage, domain):
    _, dropped = merged_range(disk)
    with pytest.raises(errors.VolumeInUse, match=dropped[0]):
        storage.discard(domain, disk.image, dropped[1], [dropped[0]])
