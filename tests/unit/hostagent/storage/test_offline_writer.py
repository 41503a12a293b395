"""The writer of offline merges on real qemu-img: what is read through the leaf never changes, whatever dies."""

from __future__ import annotations

import json
import os

import pytest

from contracts import errors
from services.hostagent import offline_copy, offline_writer
from tests.unit.hostagent.storage.room import MiB, qemu_chain, run
from tests.unit.hostagent.storage.written import Written, die

RECORD = [f"volume.record.{one}" for one in ("after_top", "after_between", "after_child", "after_base")]


@pytest.mark.parametrize(("base", "layers"), [(0, 1), (2, 1), (0, 2), (0, 3)])
def test_layers_go_down_into_base_and_the_image_reads_the_same(written, base, layers):
    volumes = written.write()
    before = written.reads()
    offline_writer.merge(written.order(volumes, base, layers))
    left = [one for one in volumes if one not in volumes[base + 1 : base + layers + 1]]
    assert written.chain_ids() == left[::-1]
    assert written.reads() == before
    for gone in volumes[base + 1 : base + layers + 1]:
        assert written.facts(gone)["legality"] == "illegal"
    for name in written.folder.glob("*"):
        assert "new" not in name.name
    run("qemu-img", "check", str(written.folder / volumes[base]))


@pytest.mark.parametrize("point", ["offline.before_copy", "offline.after_copy", "offline.after_header", *RECORD])
def test_an_internal_merge_that_dies_reads_the_same_and_is_finished(written, storage, point):
    volumes, layers = written.write(), 2 if point in RECORD else 1
    before, order = written.reads(), written.order(volumes, 0, layers)
    die(order, point)
    assert (written.leaf, written.reads()) == (volumes[3], before)
    back = storage.put_back(written.domain, written.image)  # as a start does
    assert back == ({volumes[2]: volumes[1]} if point == "offline.after_header" else {})
    assert written.reads() == before
    offline_writer.merge(order)
    assert written.chain_ids() == [*volumes[layers + 1 :][::-1], volumes[0]]
    assert written.reads() == before


@pytest.mark.parametrize("point", ["offline.before_copy", "offline.after_copy", "offline.after_mark", *RECORD])
def test_a_merge_of_the_leaf_that_dies_reads_the_same_and_is_finished(written, point):
    volumes, layers = written.write(), 3 if point in RECORD else 1
    before, order = written.reads(), written.order(volumes, 3 - layers, layers)
    die(order, point)
    assert written.leaf == (volumes[3] if point.endswith("copy") else order["base"])
    assert written.reads() == before
    offline_writer.merge(order)
    assert (written.leaf, written.reads()) == (order["base"], before)
    assert written.facts(order["base"])["volume_type"] == "leaf"


def test_a_base_that_is_smaller_grows_first(written):
    volumes = written.write()
    run("qemu-img", "resize", "-q", str(written.folder / volumes[3]), "96M")
    run("qemu-io", "-c", "write -P 9 80M 4M", str(written.folder / volumes[3]))
    before = written.reads()
    offline_writer.merge(written.order(volumes, 2))
    assert written.reads() == before
    assert written.facts(volumes[2])["capacity"] == 96 * MiB


def test_a_child_names_its_base_by_its_bare_name_whatever_the_names_were(written):
    volumes = written.write()
    for volume, below in ((volumes[2], volumes[1]), (volumes[1], volumes[0])):
        written.rebase(volume, f"../{written.image}/{below}")
    before = written.reads()
    offline_writer.merge(written.order(volumes, 0))
    assert qemu_chain(written.folder / volumes[2])[0]["backing-filename"] == volumes[0]
    assert qemu_chain(written.folder / volumes[2])[0]["backing-filename-format"] == "qcow2"
    assert written.reads() == before


def test_a_raw_base_is_named_as_raw(written, storage):
    raw = written.ids.v1
    storage.create_volume(written.domain, written.image, raw, None, 64 * MiB, format="raw")
    volumes = [raw]
    for word in ("v2", "v3"):
        volume = getattr(written.ids, word)
        storage.create_volume(written.domain, written.image, volume, volumes[-1], 64 * MiB)
        volumes.append(volume)
        run("qemu-io", "-c", f"write -P {len(volumes)} {len(volumes)}M 8M", str(written.folder / volume))
    before = written.reads()
    offline_writer.merge(written.order(volumes, 0))
    assert qemu_chain(written.folder / volumes[2])[0]["backing-filename-format"] == "raw"
    assert written.reads() == before
    written.discard(volumes[1])
    offline_writer.merge(written.order([volumes[0], volumes[2]], 0))
    assert written.leaf == raw
    assert written.reads() == before


def test_what_somebody_else_stands_on_is_left_alone(written, other_disk):
    volumes = written.write()
    (foreign,) = other_disk.chain("foreign")
    run(
        "qemu-img",
        "rebase",
        "-u",
        "-b",
        f"../{written.image}/{volumes[1]}",
        "-F",
        "qcow2",
        foreign,
        cwd=other_disk.folder,
    )
    before = (written.folder / volumes[0]).read_bytes()
    for base in (0, 1):
        with pytest.raises(errors.VolumeInUse, match=foreign):
            offline_writer.merge(written.order(volumes, base))
    assert (written.folder / volumes[0]).read_bytes() == before


def test_another_chain_than_was_planned_is_left_alone(written):
    volumes = written.write()
    for order in (written.order(volumes[:3], 1), written.order([volumes[0], *volumes[2:]], 0)):
        with pytest.raises(errors.ChainDiffers):
            offline_writer.merge(order)


def test_a_volume_that_is_open_is_waited_for_and_then_left_alone(written, open_in_qemu, monkeypatch):
    volumes = written.write()
    before = written.meta(volumes[3])
    opened = open_in_qemu(written.folder / volumes[3])
    monkeypatch.setattr(offline_writer, "LOCK_SECONDS", 1.0)
    with pytest.raises(errors.VolumeInUse):
        offline_writer.merge(written.order(volumes, 2))
    assert written.meta(volumes[3]) == before
    opened.kill()
    opened.wait()
    offline_writer.merge(written.order(volumes, 2))
    assert written.leaf == volumes[2]


def test_a_child_that_is_open_after_the_copy_is_no_word_that_nothing_was_copied(written, open_in_qemu, monkeypatch):
    volumes = written.write()
    monkeypatch.setattr(offline_writer, "LOCK_SECONDS", 1.0)
    monkeypatch.setattr(offline_copy, "down", lambda *_: open_in_qemu(written.folder / volumes[2]))
    with pytest.raises(errors.JobFailed, match="has its file open"):
        offline_writer.merge(written.order(volumes, 0))
    assert written.facts(volumes[2])["backing_id"] == volumes[1]


def test_a_full_storage_leaves_the_chain_of_before(storage, small_domain, ids, monkeypatch):
    storage.create_domain(small_domain, "small", ids.center)
    written = Written(storage, small_domain, ids.disk, ids)
    volumes = written.chain("v1", "v2")
    run("qemu-io", "-c", "write -P 7 0 256k", str(written.folder / volumes[1]))
    order = written.order(volumes, 0)
    with open(written.folder.parent / "filler", "wb") as filler:
        filler.write(b"x" * (offline_writer.files.free(filler.name)[1] - 128 * 1024))
    with pytest.raises(errors.NoSpace, match="merging"):
        offline_writer.merge(order)
    monkeypatch.setattr(offline_copy.files, "free", lambda _: (2**40, 2**40))  # somebody else takes it meanwhile
    with pytest.raises(errors.NoSpace):
        offline_writer.merge(order)
    assert written.leaf == volumes[1]
    os.unlink(written.folder.parent / "filler")
    offline_writer.merge(order)
    assert written.leaf == volumes[0]
    run("qemu-io", "-c", "read -P 7 0 256k", str(written.folder / volumes[0]))


def test_progress_that_comes_too_soon_is_told_a_little_later(capsys, monkeypatch):
    now = [10.0]
    monkeypatch.setattr(offline_copy.time, "monotonic", lambda: now[0])
    progress = offline_copy.Progress(1000)
    for printed, moment in (
        (b"    (0.00/100%)\r", 10.0),
        (b"    (50.", 10.1),
        (b"    (95.00/100%)\r", 10.2),
        (b"", 11.0),
    ):
        now[0] = moment
        progress.take(printed)
        progress.tell()
    assert [json.loads(line)["cur"] for line in capsys.readouterr().out.splitlines()] == [0, 950]
