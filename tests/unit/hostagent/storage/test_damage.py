"""Folders that are damaged, foreign or hostile: no leaf, and the reason in words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from contracts import errors, hostagent
from services.hostagent import volume
from tests.unit.hostagent.storage.room import run


def outside(disk, tmp_path: Path) -> str:
    target = tmp_path / "outside"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(target), "64M")
    return str(target)


def by_absolute_path(disk, target: str) -> str:
    return target


def by_climbing(disk, target: str) -> str:
    return os.path.relpath(target, disk.folder)


def by_link(disk, target: str) -> str:
    os.symlink(target, disk.folder / "innocent")
    return "innocent"


def by_linked_folder(disk, target: str) -> str:
    os.symlink(os.path.dirname(target), disk.folder / "folder")
    return "folder/" + os.path.basename(target)


def by_json(disk, target: str) -> str:
    return "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": target}})


def by_protocol(disk, target: str) -> str:
    return "nbd://127.0.0.1:1/export"


def by_missing_file(disk, target: str) -> str:
    return "/nowhere/at/all"


@pytest.mark.parametrize(
    "way", [by_absolute_path, by_climbing, by_link, by_linked_folder, by_json, by_protocol, by_missing_file]
)
def test_a_backing_file_outside_the_domain_is_refused(way, disk, storage, ids, tmp_path_factory):
    _, v2 = disk.chain("v1", "v2")
    disk.rebase(v2, way(disk, outside(disk, tmp_path_factory.mktemp("away"))))
    view = disk.view()
    assert view["leaf"] is None
    assert "outside its storage domain" in view["problem"]
    with pytest.raises(errors.BackingOutside):
        storage.leaf_of(view)
    with pytest.raises(errors.BackingOutside):
        storage.create_volume(**disk.wanted(ids.v3, v2))


@pytest.mark.parametrize("way", ["./{}", "../{image}/{}", "{folder}/{}", "../{image}/../{image}/{}"])
def test_crooked_names_of_the_same_file_are_understood(way, disk):
    v1, v2 = disk.chain("v1", "v2")
    disk.rebase(v2, way.format(v1, image=disk.image, folder=disk.folder))
    assert (disk.leaf, disk.facts(v2)["backing_id"]) == (v2, v1)


def test_a_hard_link_is_the_volume_itself(disk):
    v1, v2 = disk.chain("v1", "v2")
    os.link(disk.folder / v1, disk.folder / "same")
    disk.rebase(v2, "same")
    assert disk.facts(v2)["backing_id"] == v1


def make_foreign(disk, v2: str) -> None:
    (disk.folder / "foreign").write_bytes(b"x")
    disk.rebase(v2, "foreign")


def drop_format(disk, v2: str) -> None:
    """A backing file without a format: QEMU would guess it from what a guest wrote."""
    data = bytearray((disk.folder / v2).read_bytes())
    at = data.index(b"\xe2\x79\x2a\xca")
    data[at : at + 4] = b"\x00\x00\x00\x07"
    (disk.folder / v2).write_bytes(data)


def cut(disk, v2: str) -> None:
    os.truncate(disk.folder / v2, 90)


def empty(disk, v2: str) -> None:
    os.truncate(disk.folder / v2, 0)


def corrupt(disk, v2: str) -> None:
    data = bytearray((disk.folder / v2).read_bytes())
    data[79] |= 2
    (disk.folder / v2).write_bytes(data)


def external(disk, v2: str) -> None:
    os.unlink(disk.folder / v2)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data", v2, "64M", cwd=disk.folder)


def link(disk, v2: str) -> None:
    os.rename(disk.folder / v2, disk.folder / "real")
    os.symlink("real", disk.folder / v2)


def pipe(disk, v2: str) -> None:
    os.unlink(disk.folder / v2)
    os.mkfifo(disk.folder / v2)


def lose(disk, v2: str) -> None:
    os.unlink(disk.folder / v2)


def lose_base(disk, v2: str) -> None:
    os.unlink(disk.folder / disk.ids.v1)


def spoil_meta(disk, v2: str) -> None:
    (disk.folder / f"{v2}.meta").write_bytes(b"\xff" * 100)


def pipe_as_meta(disk, v2: str) -> None:
    os.unlink(disk.folder / f"{v2}.meta")
    os.mkfifo(disk.folder / f"{v2}.meta")


DAMAGES = {
    make_foreign: "is no volume",
    drop_format: "does not say which format",
    cut: "it ends after 90 bytes",
    empty: "it is no qcow2 file",
    corrupt: "QEMU marked it corrupt",
    external: "keeps its data in another file",
    link: "is not a regular file",
    pipe: "is not a regular file",
    lose: "is missing",
    lose_base: "is missing",
    spoil_meta: "not UTF-8",
    pipe_as_meta: "not a regular file",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_chain_has_no_leaf_and_says_why(damage, disk, storage):
    _v1, v2 = disk.chain("v1", "v2")
    damage(disk, v2)
    view = disk.view()
    assert view["leaf"] is None
    assert DAMAGES[damage] in view["problem"]
    assert hostagent.StorageView().load(view)
    with pytest.raises(errors.ChainBroken):
        storage.leaf_of(view)


def test_a_disk_that_does_not_exist_is_not_found(disk):
    with pytest.raises(errors.NotFound):
        disk.view()


def test_a_file_in_place_of_a_folder_is_refused(disk):
    disk.folder.write_text("")
    with pytest.raises(errors.ChainBroken, match="not a directory"):
        disk.view()


def test_a_folder_with_too_many_files_is_refused(disk, domain, monkeypatch):
    disk.chain("v1")
    monkeypatch.setattr(volume, "MAX_FILES", 2)
    with pytest.raises(errors.ChainBroken, match="more than 2 files"):
        volume.view(domain, disk.image)


def test_a_volume_on_a_templates_volume_of_another_image(disk, other_disk):
    (base,) = other_disk.chain("template")
    (v1,) = disk.chain("v1")
    disk.rebase(v1, f"../{other_disk.image}/{base}")
    assert (disk.leaf, disk.facts(v1)["backing_id"]) == (v1, base)
