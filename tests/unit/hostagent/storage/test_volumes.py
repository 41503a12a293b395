from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from contracts import errors, hostagent
from services.hostagent import files, layout
from tests.unit.hostagent.storage.room import MiB, qemu_chain, run

CREATE_POINTS = [
    "volume.create.after_intent",
    "volume.create.before_image",
    "volume.create.after_image",
    "volume.create.after_lease",
    "volume.create.after_parent",
    "volume.create.after_meta",
]


def test_a_chain_is_what_qemu_img_sees(disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    seen = qemu_chain(disk.folder / v3)
    assert [Path(n["filename"]).name for n in seen] == [v3, v2, v1]
    assert [n.get("backing-filename") for n in seen] == [v2, v1, None]  # bare names: nothing for libvirt to grow
    assert {n["format-specific"]["data"]["compat"] for n in seen} == {"1.1"}
    assert {n["virtual-size"] for n in seen} == {64 * MiB}
    view = disk.view()
    assert (view["leaf"], view["problem"]) == (v3, None)
    assert {v["volume_id"]: v["backing_id"] for v in view["volumes"]} == {v1: None, v2: v1, v3: v2}


def test_what_it_tells_is_what_was_promised(disk, storage, domain):
    v1, v2 = disk.chain("v1", "v2")
    view = disk.view()
    loaded = hostagent.StorageView().load(view)
    assert loaded["leaf"] == v2
    assert {v["volume_id"]: v["volume_type"] for v in loaded["volumes"]} == {v1: "internal", v2: "leaf"}
    assert {v["legality"] for v in loaded["volumes"]} == {"legal"}
    assert storage.leaf_of(view) == v2
    assert storage.path(domain, disk.image, v2) == str(disk.folder / v2)


def test_each_volume_has_three_files_for_its_group_only(disk):
    (v1,) = disk.chain("v1")
    assert disk.files() == [v1, f"{v1}.lease", f"{v1}.meta"]
    assert {(disk.folder / f).stat().st_mode & 0o777 for f in disk.files()} == {0o660}
    assert (disk.folder / f"{v1}.lease").stat().st_size == MiB


def test_a_raw_volume_and_a_cow_volume_on_it(disk, storage, domain, ids):
    storage.create_volume(domain, disk.image, ids.v1, None, MiB, "raw")
    storage.create_volume(domain, disk.image, ids.v2, ids.v1, MiB)
    assert [n["format"] for n in qemu_chain(disk.folder / ids.v2)] == ["qcow2", "raw"]
    assert disk.leaf == ids.v2


def test_what_a_guest_writes_into_a_raw_volume_is_no_header(disk, storage, domain, ids):
    storage.create_volume(domain, disk.image, ids.v1, None, MiB, "raw")
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "/etc/shadow",
        "-F",
        "raw",
        "evil",
        "1M",
        cwd=disk.folder.parent,
    )
    (disk.folder / ids.v1).write_bytes((disk.folder.parent / "evil").read_bytes().ljust(MiB, b"\0"))
    facts = disk.facts(ids.v1)
    assert (disk.leaf, facts["backing_id"], facts["capacity"]) == (ids.v1, None, MiB)


def test_making_a_volume_again_changes_nothing(disk, storage, domain, ids):
    v1, v2 = disk.chain("v1", "v2")
    before = [(disk.folder / f).read_bytes() for f in disk.files()]
    again = storage.create_volume(domain, disk.image, v2, v1, 64 * MiB)
    assert again["volume_id"] == v2
    assert [(disk.folder / f).read_bytes() for f in disk.files()] == before


@pytest.mark.parametrize("point", CREATE_POINTS)
def test_a_creation_that_died_is_finished_by_a_repetition(point, die_at, disk, ids):
    (v1,) = disk.chain("v1")
    die_at(point, "create_volume", **disk.wanted(ids.v2, v1))
    assert disk.leaf in {v1, ids.v2}  # at every moment there is one
    disk.storage.create_volume(**disk.wanted(ids.v2, v1))
    assert disk.leaf == ids.v2
    assert len(disk.files()) == 6
    assert disk.facts(v1)["volume_type"] == "internal"
    assert len(qemu_chain(disk.folder / ids.v2)) == 2


@pytest.mark.parametrize("point", CREATE_POINTS)
def test_a_creation_that_died_can_be_taken_back(point, die_at, disk, ids):
    (v1,) = disk.chain("v1")
    die_at(point, "create_volume", **disk.wanted(ids.v2, v1))
    if disk.leaf == ids.v2:
        disk.mark(ids.v2, "illegal")
    disk.discard(ids.v2)
    assert disk.leaf == v1
    assert len(disk.files()) == 3


def test_the_crash_points_of_a_creation_are_all_tried():
    source = Path(files.__file__).with_name("creation.py").read_text()
    assert source.count("crash.point(") == len(CREATE_POINTS)


# -- refusals ---------------------------------------------------------------------------------------------


def test_the_same_id_for_another_volume_is_refused(disk, storage, domain):
    v1, v2 = disk.chain("v1", "v2")
    for parent, capacity, kind in ((None, 64 * MiB, "cow"), (v1, 65 * MiB, "cow"), (None, 64 * MiB, "raw")):
        with pytest.raises(errors.AlreadyExists):
            storage.create_volume(domain, disk.image, v2, parent, capacity, kind)


def test_a_parent_that_is_not_the_leaf_is_refused(disk, storage, domain, ids):
    v1, v2 = disk.chain("v1", "v2")
    with pytest.raises(errors.ChainDiffers, match=f"its leaf is {v2}, not {v1}"):
        storage.create_volume(domain, disk.image, ids.v3, v1, 64 * MiB)
    with pytest.raises(errors.NotFound):
        storage.create_volume(domain, disk.image, ids.v3, ids.nobody, 64 * MiB)
    with pytest.raises(errors.ChainDiffers, match="needs a parent"):
        storage.create_volume(domain, disk.image, ids.v3, None, 64 * MiB)
    assert len(disk.files()) == 6


def test_requests_that_make_no_sense_are_refused(disk, storage, domain, ids):
    (v1,) = disk.chain("v1")
    with pytest.raises(errors.BadRequest, match="multiple of 512"):
        storage.create_volume(domain, disk.image, ids.v2, v1, 64 * MiB + 1)
    with pytest.raises(errors.BadRequest, match="Less than the parent"):
        storage.create_volume(domain, disk.image, ids.v2, v1, MiB)
    with pytest.raises(errors.BadRequest, match="raw volume cannot stand"):
        storage.create_volume(domain, disk.image, ids.v2, v1, 64 * MiB, "raw")
    with pytest.raises(errors.BadRequest, match="line break"):
        storage.create_volume(domain, disk.image, ids.v2, v1, 64 * MiB, "cow", "a\nLEGALITY=ILLEGAL")
    with pytest.raises(errors.BadRequest, match="allows 512"):
        storage.create_volume(domain, disk.image, ids.v2, v1, 64 * MiB, "cow", "ü" * 150)


def test_a_refused_first_volume_leaves_no_folder(disk, storage, domain, ids):
    with pytest.raises(errors.NotFound):
        storage.create_volume(domain, disk.image, ids.v2, ids.v1, MiB)
    assert not disk.folder.exists()


@pytest.mark.parametrize("suffix", ["", ".lease"])
def test_a_foreign_file_with_the_volumes_name_is_refused_and_kept(suffix, disk, storage, domain, ids):
    (v1,) = disk.chain("v1")
    foreign = disk.folder / (ids.v2 + suffix)
    foreign.write_text("precious")
    with pytest.raises(errors.AlreadyExists, match="file"):
        storage.create_volume(domain, disk.image, ids.v2, v1, 64 * MiB)
    with pytest.raises(errors.VolumeInUse):
        disk.discard(ids.v2)
    assert foreign.read_text() == "precious"


def test_a_full_storage_refuses_and_keeps_nothing_half_made(storage, small_domain, ids):
    storage.create_domain(small_domain, "silo", ids.center)
    storage.create_volume(small_domain, ids.disk, ids.v1, None, MiB)
    images = Path(small_domain["path"], small_domain["id"], "images")
    has = os.statvfs(small_domain["path"])
    Path(small_domain["path"], "filler").write_bytes(b"x" * (has.f_bavail * has.f_frsize - 16384))
    before = sorted(p.name for p in images.rglob("*"))
    with pytest.raises(errors.NoSpace) as caught:
        storage.create_volume(small_domain, ids.disk, ids.v2, ids.v1, MiB)
    assert caught.value.fields["needs"] > caught.value.fields["has"]
    with pytest.raises(errors.NoSpace):
        storage.create_volume(small_domain, ids.other_disk, ids.v3, None, MiB)
    assert sorted(p.name for p in images.rglob("*")) == before
    os.unlink(Path(small_domain["path"], "filler"))
    storage.create_volume(small_domain, ids.disk, ids.v2, ids.v1, MiB)


def fill(path: Path) -> None:
    """Take the last byte of a file system."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def test_a_prepared_mark_needs_no_space(storage, small_domain, ids):
    storage.create_domain(small_domain, "silo", ids.center)
    storage.create_volume(small_domain, ids.disk, ids.v1, None, MiB)
    storage.create_volume(small_domain, ids.disk, ids.v2, ids.v1, MiB)
    storage.prepare_mark(small_domain, ids.disk, ids.v2, "illegal")
    assert storage.volumes(small_domain, ids.disk)["leaf"] == ids.v2
    fill(Path(small_domain["path"], "filler"))
    with pytest.raises(errors.NoSpace):
        storage.mark(small_domain, ids.disk, ids.v1, "illegal")
    storage.mark(small_domain, ids.disk, ids.v2, "illegal")
    assert storage.volumes(small_domain, ids.disk)["leaf"] == ids.v1


# -- marks and records ------------------------------------------------------------------------------------


def test_a_mark_moves_the_leaf(disk):
    v1, v2 = disk.chain("v1", "v2")
    disk.mark(v2, "illegal")
    disk.mark(v2, "illegal")
    assert (disk.leaf, disk.facts(v2)["legality"]) == (v1, "illegal")
    disk.mark(v2, "legal")
    assert disk.leaf == v2
    assert len(disk.files()) == 6


def test_unknown_volumes_cannot_be_marked(disk, ids):
    disk.chain("v1")
    with pytest.raises(errors.NotFound):
        disk.mark(ids.nobody, "illegal")


def test_metadata_that_templates_share_is_not_replaced(disk):
    (v1,) = disk.chain("v1")
    os.link(disk.folder / f"{v1}.meta", disk.folder.parent / "another-name")
    with pytest.raises(errors.StorageFailed, match="more than one name"):
        disk.mark(v1, "illegal")
    assert disk.facts(v1)["legality"] == "legal"


def test_an_active_merge_is_recorded_after_its_mark(disk, storage, domain):
    _v1, v2, v3 = disk.chain("v1", "v2", "v3")
    disk.commit(v3)
    with pytest.raises(errors.ChainDiffers, match="not marked illegal"):
        storage.record_merge(domain, disk.image, v2, v3, None)
    disk.mark(v3, "illegal")
    for _ in range(2):
        storage.record_merge(domain, disk.image, v2, v3, None)
    assert disk.leaf == v2
    assert disk.facts(v2)["volume_type"] == "leaf"
    disk.discard(v3)
    storage.record_merge(domain, disk.image, v2, v3, None)


@pytest.mark.parametrize("point", ["volume.record.after_top", "volume.record.after_child", "volume.record.after_base"])
def test_an_internal_merge_is_recorded_whatever_dies(point, die_at, disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    with pytest.raises(errors.ChainDiffers, match="the merge is not done"):
        disk.storage.record_merge(disk.domain, disk.image, v1, v2, v3)
    disk.commit(v2)
    disk.rebase(v3, v1)
    assert disk.leaf == v3  # before it is recorded, too
    ends = {"base": v1, "top": v2, "child": v3}
    die_at(point, "record_merge", domain=disk.domain, image=disk.image, **ends, concluded=True)
    assert disk.leaf == v3
    assert disk.storage.put_back(disk.domain, disk.image) == {}
    disk.storage.record_merge(disk.domain, disk.image, v1, v2, v3)  # begun: finished without QEMU's word
    facts = disk.facts(v3)
    assert (facts["parent_id"], facts["backing_id"]) == (v1, v1)
    assert disk.facts(v2)["legality"] == "illegal"
    disk.discard(v2)
    assert [v["volume_id"] for v in disk.view()["volumes"]] == sorted([v1, v3])


def test_a_merge_record_tells_the_size_that_qemu_gave_base(disk, storage, domain):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    run("qemu-img", "resize", "-q", v1, "128M", cwd=disk.folder)
    disk.rebase(v3, v1)
    storage.record_merge(domain, disk.image, v1, v2, v3, concluded=True)
    assert b"CAP=134217728\n" in (disk.folder / f"{v1}.meta").read_bytes()
    storage.resize(domain, disk.image, v1, 256 * MiB)
    assert b"CAP=268435456\n" in (disk.folder / f"{v1}.meta").read_bytes()


def test_a_merge_with_unknown_ends_is_refused(disk, storage, domain, ids):
    _v1, v2 = disk.chain("v1", "v2")
    with pytest.raises(errors.NotFound):
        storage.record_merge(domain, disk.image, ids.nobody, v2, None)


def test_the_metadata_is_readable_by_its_family(disk, ids):
    (v1,) = disk.chain("v1")
    lines = (disk.folder / f"{v1}.meta").read_text().splitlines()
    assert [line.split("=")[0] for line in lines] == [
        "CAP", "CTIME", "DESCRIPTION", "DISKTYPE", "DOMAIN", "FORMAT", "GEN", "IMAGE", "LEGALITY", "PUUID", "SEQ",
        "TYPE", "VOLTYPE", "EOF",
    ]  # fmt: skip
    assert f"PUUID={layout.BLANK}" in lines
    assert subprocess.check_output(["qemu-img", "check", disk.folder / v1])
