from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contracts import errors, hostagent
from services.hostagent import files, layout
from services.hostagent.storage import Storage
from tests.unit.hostagent.storage.room import MiB, qemu_chain, run

DISCARD_POINTS = [
    "volume.discard.after_scan",
    *(f"volume.discard.{what}{part}" for what in ("renamed", "removed") for part in (".data", ".lease", ".meta")),
]
DELETE_POINTS = [
    "image.delete.after_scan",
    "image.delete.renamed",
    "image.delete.removed_one",
    "image.delete.emptied",
]


def dropped(disk) -> tuple[str, str]:
    """A chain v1 <- v2 of which v2 is dropped."""
    v1, v2 = disk.chain("v1", "v2")
    disk.mark(v2, "illegal")
    return v1, v2


def test_a_dropped_volume_is_deleted_with_all_its_files(disk):
    v1, v2 = dropped(disk)
    disk.discard(v2)
    disk.discard(v2)
    assert disk.files() == [v1, f"{v1}.lease", f"{v1}.meta"]


@pytest.mark.parametrize("point", DISCARD_POINTS)
def test_a_deletion_that_died_is_finished_by_a_repetition(point, die_at, disk, domain):
    v1, v2 = dropped(disk)
    die_at(point, "discard", domain=domain, image=disk.image, volume=v2)
    assert disk.leaf == v1
    disk.discard(v2)
    assert disk.files() == [v1, f"{v1}.lease", f"{v1}.meta"]
    assert len(qemu_chain(disk.folder / v1)) == 1


@pytest.mark.parametrize("point", DELETE_POINTS)
def test_a_disk_whose_deletion_died_is_deleted_by_a_repetition(point, die_at, disk, domain):
    disk.chain("v1", "v2")
    die_at(point, "delete_image", domain=domain, image=disk.image)
    disk.delete()
    disk.delete()
    assert os.listdir(disk.folder.parent) == []


def test_the_crash_points_of_deletions_are_all_tried():
    source = Path(files.__file__).with_name("discard.py").read_text()
    assert source.count("crash.point(") == 3 + len(DELETE_POINTS)


def test_a_volume_that_nobody_dropped_is_kept(disk):
    v1, v2 = disk.chain("v1", "v2")
    for volume in (v1, v2):
        with pytest.raises(errors.VolumeInUse, match="not marked illegal"):
            disk.discard(volume)
    assert len(disk.files()) == 6


def test_a_volume_that_its_child_stands_on_is_kept(disk):
    v1, v2 = disk.chain("v1", "v2")
    disk.mark(v1, "illegal")
    with pytest.raises(errors.VolumeInUse, match=f"volume {v2} of disk"):
        disk.discard(v1)


def test_a_volume_that_only_a_record_names_is_kept(disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    disk.rebase(v3, v1)
    disk.mark(v2, "illegal")
    with pytest.raises(errors.VolumeInUse, match=f"the metadata of volume {v3}"):
        disk.discard(v2)


# -- who refers -------------------------------------------------------------------------------------------


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


# -- QEMU's lock ------------------------------------------------------------------------------------------


def test_a_volume_that_a_qemu_writes_cannot_be_deleted(disk, open_in_qemu):
    _v1, v2 = disk.chain("v1", "v2")
    open_in_qemu(disk.folder / v2)
    disk.mark(v2, "illegal")
    with pytest.raises(errors.VolumeInUse, match="QEMU's image lock"):
        disk.discard(v2)
    with pytest.raises(errors.VolumeInUse, match="QEMU's image lock"):
        disk.delete()
    assert len(disk.files()) == 6


def test_a_base_that_a_qemu_reads_cannot_be_deleted(disk, open_in_qemu):
    """QEMU has v2 open with v1 below it; on the disk v2 was rebased away meanwhile."""
    v1, v2 = disk.chain("v1", "v2")
    qemu = open_in_qemu(disk.folder / v2)
    with pytest.raises(errors.VolumeInUse, match="QEMU's image lock"), files.qemu_lock(str(disk.folder / v1), v1):
        pass
    qemu.terminate()
    qemu.wait()
    disk.delete()
    assert not disk.folder.exists()


def test_no_qemu_can_open_what_is_about_to_be_deleted(disk):
    (v1,) = disk.chain("v1")
    with files.qemu_lock(str(disk.folder / v1), v1):
        for how in ("-r", "-n"):
            with pytest.raises(Exception, match="returned non-zero"):
                run("qemu-io", "-f", "qcow2", how, "-c", "read 0 512", str(disk.folder / v1))
    run("qemu-io", "-f", "qcow2", "-c", "write 0 512", str(disk.folder / v1))


def test_a_replaced_file_is_not_taken_for_the_one_that_was_locked(disk, monkeypatch):
    (v1,) = disk.chain("v1")
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **kw: real("/etc/hostname"))
    with pytest.raises(OSError, match="replaced"), files.qemu_lock(str(disk.folder / v1), v1):
        pass


# -- the image's lock -------------------------------------------------------------------------------------


def test_a_deletion_and_a_creation_in_one_image_exclude_each_other(disk, storage, domain, ids):
    v1, v2 = dropped(disk)
    done: list[str] = []
    with files.image_lock(layout.Place(domain["path"], domain["id"]), disk.image):
        threads = [
            threading.Thread(target=lambda: (disk.discard(v2), done.append("discard"))),
            threading.Thread(
                target=lambda: (storage.create_volume(domain, disk.image, ids.v3, v1, 64 * MiB), done.append("create"))
            ),
        ]
        for thread in threads:
            thread.start()
        disk.mark(v1, "legal")  # marks do not wait for that lock
        time.sleep(0.2)
        assert done == []
    for thread in threads:
        thread.join()
    assert sorted(done) == ["create", "discard"]
    assert disk.leaf == ids.v3


def test_two_hosts_that_make_the_same_volume_make_one(disk, domain, ids):
    (v1,) = disk.chain("v1")
    hosts = [Storage(deadline=30) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda host: host.create_volume(**disk.wanted(ids.v2, v1)), hosts))
    for host in hosts:
        host.close()
    assert made[0] == made[1]
    assert (disk.leaf, len(disk.files())) == (ids.v2, 6)


def test_two_hosts_that_make_two_leaves_make_one(disk, domain, ids):
    (v1,) = disk.chain("v1")
    hosts = {ids.v2: Storage(deadline=30), ids.v3: Storage(deadline=30)}

    def make(volume: str) -> str:
        try:
            hosts[volume].create_volume(**disk.wanted(volume, v1))
        except errors.ChainDiffers:
            return "refused"
        return volume

    with ThreadPoolExecutor() as pool:
        outcomes = set(pool.map(make, hosts))
    for host in hosts.values():
        host.close()
    assert outcomes == {"refused", disk.leaf}
    assert len(disk.files()) == 6


def test_waiting_for_an_image_ends(disk, domain, monkeypatch):
    disk.chain("v1")
    monkeypatch.setattr(files, "WAIT", 0.05)
    place = layout.Place(domain["path"], domain["id"])
    with files.image_lock(place, disk.image), pytest.raises(errors.StorageTimeout), files.image_lock(place, disk.image):
        pass
