"""Who refers to a volume, by every way that QEMU would follow; and what the scan of a domain tells."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contracts import errors, hostagent
from services.hostagent import layout
from tests.unit.hostagent.storage.room import dropped, qemu_chain, run


def clone_in_another_image(disk, other, volume: str) -> Path:
    (clone,) = other.chain("clone")
    other.rebase(clone, f"../{disk.image}/{volume}")
    return other.folder / clone


def foreign(disk, where: Path, name: str) -> Path:
    where.mkdir(parents=True, exist_ok=True)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", "foreign.img", "64M", cwd=where)
    return where / "foreign.img"


def foreign_beside(disk, other, volume: str) -> Path:
    return foreign(disk, disk.folder, volume)


def foreign_in_a_folder_of_its_own(disk, other, volume: str) -> Path:
    return foreign(disk, disk.folder.parent / "backup" / "monday", f"../../{disk.image}/{volume}")


def foreign_in_images(disk, other, volume: str) -> Path:
    return foreign(disk, disk.folder.parent, str(disk.folder / volume))


def foreign_by_json(disk, other, volume: str) -> Path:
    name = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"%s"}}' % (disk.folder / volume)
    return foreign(disk, disk.folder.parent, name)


def foreign_by_json_that_only_qemu_reads(disk, other, volume: str) -> Path:
    name = "json:{'driver':'qcow2','file':{'driver':'file','filename':'%s'}}" % (disk.folder / volume)
    return foreign(disk, disk.folder.parent, name)


def foreign_through_a_filter(disk, other, volume: str) -> Path:
    return foreign(disk, disk.folder.parent, f"blkdebug::{disk.image}/{volume}")


def foreign_by_its_path_on_another_host(disk, other, volume: str) -> Path:
    return foreign(disk, disk.folder.parent, f"/rhev/data-center/mnt/nfs:_silo/images/{disk.image}/{volume}")


def foreign_qed(disk, other, volume: str) -> Path:
    where = disk.folder.parent
    run(
        "qemu-img", "create", "-q", "-f", "qed", "-b", f"{disk.image}/{volume}", "-F", "qcow2", "foreign.qed", cwd=where
    )
    return where / "foreign.qed"


def foreign_vmdk(disk, other, volume: str) -> Path:
    """A descriptor whose extent is the volume."""
    where = disk.folder.parent
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "foreign.vmdk", "1M", cwd=where)
    os.unlink(where / "foreign-flat.vmdk")
    path = where / "foreign.vmdk"
    path.write_text(path.read_text().replace("foreign-flat.vmdk", f"{disk.image}/{volume}"))
    return path


def foreign_through_a_link(disk, other, volume: str) -> Path:
    alias = disk.folder.parent / "alias"
    os.symlink(disk.folder, alias)
    return foreign(disk, disk.folder.parent / "x", f"../alias/{volume}")


def foreign_by_hard_link(disk, other, volume: str) -> Path:
    folder = disk.folder.parent / "x"
    folder.mkdir()
    os.link(disk.folder / volume, folder / "twin")
    return foreign(disk, folder, "twin")


def a_link(disk, other, volume: str) -> Path:
    path = disk.folder.parent / "shortcut"
    os.symlink(disk.folder / volume, path)
    return path


def a_damaged_foreign_file(disk, other, volume: str) -> Path:
    path = foreign(disk, disk.folder.parent, f"{disk.image}/{volume}")
    data = bytearray(path.read_bytes())
    data[4:8] = b"\0\0\0\x09"  # a version of the future
    path.write_bytes(data)
    return path


def data_in_the_volume(disk, other, volume: str) -> Path:
    """A foreign image that keeps its data in a file of that inode."""
    folder = disk.folder.parent
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "foreign.img", "64M", cwd=folder)
    os.unlink(folder / "data.raw")
    os.symlink(disk.folder / volume, folder / "data.raw")
    return folder / "foreign.img"


WAYS = [
    clone_in_another_image,
    foreign_beside,
    foreign_in_a_folder_of_its_own,
    foreign_in_images,
    foreign_by_json,
    foreign_by_json_that_only_qemu_reads,
    foreign_through_a_filter,
    foreign_by_its_path_on_another_host,
    foreign_qed,
    foreign_vmdk,
    foreign_through_a_link,
    foreign_by_hard_link,
    a_link,
    a_damaged_foreign_file,
    data_in_the_volume,
]


@pytest.mark.parametrize("way", WAYS)
def test_whoever_refers_to_a_volume_keeps_it(way, disk, other_disk, storage, domain):
    _v1, v2 = disk.chain("v1", "v2")
    path = way(disk, other_disk, v2)
    disk.mark(v2, "illegal")
    with pytest.raises(errors.VolumeInUse) as caught:
        disk.discard(v2)
    assert path.name in str(caught.value)
    assert any(path.name in by for by in storage.referrers(domain, disk.image, [v2])[v2])
    assert (disk.folder / v2).exists()


@pytest.mark.parametrize("way", [w for w in WAYS if w not in {foreign_beside, foreign_by_hard_link}])
def test_whoever_refers_to_a_disk_keeps_it(way, disk, other_disk):
    _v1, v2 = disk.chain("v1", "v2")
    path = way(disk, other_disk, v2)
    with pytest.raises(errors.VolumeInUse) as caught:
        disk.delete()
    assert path.name in str(caught.value)
    assert len(disk.files()) == 6


def test_a_reference_by_hard_link_alone_does_not_keep_a_disk_that_has_one_of_the_names(disk, other_disk):
    """As with a template: its file has a name in each image, the data lives as long as one name does."""
    (v1,) = disk.chain("v1")
    other_disk.folder.mkdir()
    for suffix in ("", ".meta", ".lease"):
        os.link(disk.folder / (v1 + suffix), other_disk.folder / (v1 + suffix))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", v1, "-F", "qcow2", "clone", cwd=other_disk.folder)
    disk.delete()
    assert (other_disk.folder / v1).exists()
    assert len(qemu_chain(other_disk.folder / "clone")) == 2


def test_one_scan_answers_for_a_whole_range(disk, storage, domain):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    by = storage.referrers(domain, disk.image, [v1, v2, v3], but=[v3])
    assert (len(by[v1]), by[v2], by[v3]) == (2, [], [])


def test_a_file_that_cannot_be_read_stops_the_scan_by_its_name(disk, storage, domain):
    _v1, v2 = dropped(disk)
    path = disk.folder.parent / "unreadable"
    path.touch()
    run("mount", "--bind", f"/proc/{os.getpid()}/mem", str(path))  # a regular file whose first bytes are EIO
    try:
        for ask in (lambda: storage.scan(domain), lambda: disk.discard(v2)):
            with pytest.raises(errors.StorageFailed, match="unreadable"):
                ask()
        assert (disk.folder / v2).exists()
    finally:
        run("umount", str(path))


def test_a_name_that_no_file_can_have_leads_nowhere(disk, storage, domain):
    _v1, v2 = dropped(disk)
    for number, name in enumerate(["x" * 300, 'json:{"a":"\\u0000","b":"\\ud800"}', "./" * 500]):
        foreign(disk, disk.folder.parent / str(number), name)
    assert len(storage.scan(domain)["foreign"]) == 3
    disk.discard(v2)


def test_before_a_merge_base_may_have_top_and_nobody_else(disk, other_disk, storage, domain):
    v1, v2 = disk.chain("v1", "v2")
    assert len(storage.referrers(domain, disk.image, [v1])[v1]) == 2  # by header and by record
    assert storage.referrers(domain, disk.image, [v1, v2], but=[v2]) == {v1: [], v2: []}
    clone = clone_in_another_image(disk, other_disk, v1)
    found = storage.referrers(domain, disk.image, [v1, v2], but=[v2])
    assert found == {v1: [f"volume {clone.name} of disk {other_disk.image}"], v2: []}


def test_a_disk_with_foreign_files_in_its_folder_is_kept(disk):
    disk.chain("v1")
    (disk.folder / "notes.txt").write_text("precious")
    with pytest.raises(errors.VolumeInUse, match=r"notes\.txt"):
        disk.delete()
    assert (disk.folder / "notes.txt").read_text() == "precious"


def test_what_is_being_deleted_refers_to_nothing(disk, other_disk):
    _v1, v2 = dropped(disk)
    clone = clone_in_another_image(disk, other_disk, v2)
    os.rename(clone, clone.with_name(layout.REMOVED + clone.name))
    disk.discard(v2)


def test_the_scan_tells_every_chain_and_every_foreign_file(disk, other_disk, storage, domain):
    v1, v2 = disk.chain("v1", "v2")
    other_disk.chain("w1")
    path = foreign_beside(disk, other_disk, v2)
    (disk.folder.parent / "notes").write_text("")
    scan = storage.scan(domain)
    assert hostagent.DomainScan().load(scan)
    assert {(r["disk_id"], r["volume_id"], r["backing_id"]) for r in scan["volumes"]} == {
        (disk.image, v1, None),
        (disk.image, v2, v1),
        (other_disk.image, disk.ids.w1, None),
    }
    assert {(f["path"], f["backing"]) for f in scan["foreign"]} == {
        (str(path), v2),
        (str(disk.folder.parent / "notes"), None),
    }


def test_the_scan_agrees_with_qemu_img(disk, other_disk, storage, domain):
    disk.chain("v1", "v2", "v3", "v4")
    clone_in_another_image(disk, other_disk, disk.ids.v4)
    for row in storage.scan(domain)["volumes"]:
        seen = qemu_chain(Path(row["path"]))
        below = os.path.basename(seen[1]["filename"]) if len(seen) > 1 else None
        assert (row["backing_id"], row["capacity"]) == (below, seen[0]["virtual-size"])
        assert row["actual_size"] == seen[0]["actual-size"]


def test_a_damaged_chain_is_a_row_with_its_problem(disk, storage, domain):
    v1, v2 = disk.chain("v1", "v2")
    os.truncate(disk.folder / v2, 90)
    problems = {r["volume_id"]: r["problem"] for r in storage.scan(domain)["volumes"]}
    assert problems[v1] is None
    assert "it ends after 90 bytes" in problems[v2]


def test_names_that_are_no_text_are_told_in_text(disk, storage, domain):
    disk.chain("v1")
    name = os.fsdecode(b"caf\xe9\n")
    (disk.folder / name).write_text("")
    (told,) = [f["path"] for f in storage.scan(domain)["foreign"]]
    assert told.endswith("caf\\udce9\\x0a")
    with pytest.raises(errors.VolumeInUse, match="caf") as caught:
        disk.delete()
    assert str(caught.value).encode()


def test_nothing_is_deleted_through_a_link(disk, tmp_path_factory):
    _, v2 = dropped(disk)
    away = tmp_path_factory.mktemp("away") / "image"
    os.rename(disk.folder, away)
    os.symlink(away, disk.folder)
    for ask in (lambda: disk.discard(v2), disk.delete):
        with pytest.raises(errors.ChainBroken, match="not a directory"):
            ask()
    assert len(os.listdir(away)) == 6


def test_folders_without_end_stop_the_scan(disk, storage, domain):
    disk.chain("v1")
    os.makedirs(disk.folder.joinpath(*"abcdefghijkl"))
    with pytest.raises(errors.StorageFailed, match="nested too deeply"):
        storage.scan(domain)


@pytest.mark.parametrize("name", ["{image}.nvram", "{image}.nvram.new"])
def test_uefi_variables_are_no_foreign_file_and_go_with_the_image(disk, storage, domain, name):
    disk.chain("v1")
    (disk.folder / name.format(image=disk.image)).write_bytes(b"QFI\xfb" + bytes(4096))
    assert storage.scan(domain)["foreign"] == []
    disk.delete()
    assert not disk.folder.exists()


def test_a_link_that_is_named_like_uefi_variables_still_counts(disk, other_disk, storage, domain):
    (volume,) = other_disk.chain("v1")
    disk.chain("v2")
    (disk.folder / f"{disk.image}.nvram").symlink_to(other_disk.folder / volume)
    assert len(storage.scan(domain)["foreign"]) == 1
    with pytest.raises(errors.VolumeInUse):
        other_disk.delete()


@pytest.mark.parametrize("kind", ["link", "second name", "folder"])
def test_uefi_variables_that_are_no_file_of_their_own_are_refused(disk, storage, domain, kind):
    (volume,) = disk.chain("v1")
    storage.check_variables(domain, disk.image)
    path = disk.folder / f"{disk.image}.nvram"
    make = {"link": path.symlink_to, "second name": path.hardlink_to, "folder": lambda _: path.mkdir()}
    make[kind](disk.folder / volume)
    with pytest.raises(errors.StorageFailed, match="no file of its own"):
        storage.check_variables(domain, disk.image)
