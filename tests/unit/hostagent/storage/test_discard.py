from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contracts import errors
from services.hostagent import files, layout
from services.hostagent.storage import Storage
from tests.unit.hostagent.storage.room import MiB, dropped, qemu_chain, run

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
    assert source.count("crash.point(") == 3 + len(DELETE_POINTS) + 1  # the mark of a new volume: test_unused


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
