"""An internal merge that no record tells of is undone: the child stands on top again, which holds everything."""

from __future__ import annotations

import threading
import time

import pytest

from contracts import errors
from services.hostagent import chain, files, layout
from services.hostagent.chain import Volume
from services.hostagent.storage import MAKE
from tests.unit.hostagent.storage.room import qemu_chain, run

ABSENT = errors.ChainBroken(disk_id="d", reason="it is missing")


def vol(id_: str, parent: str | None, backing: str | None = "", **more: object) -> Volume:
    return Volume(id_, parent=parent, backing=parent if backing == "" else backing, **more)  # type: ignore[arg-type]


UNRECORDED = {
    "all as it was": ([vol("a", None), vol("b", "a"), vol("c", "b")], {}),
    "the header names base": ([vol("a", None), vol("b", "a"), vol("c", "b", "a")], {"c": "b"}),
    "a range": ([vol("a", None), vol("b", "a"), vol("c", "b"), vol("d", "c", "a")], {"d": "c"}),
    "below the leaf": ([vol("a", None), vol("b", "a"), vol("c", "b", "a"), vol("d", "c")], {"c": "b"}),
    "the record was begun": ([vol("a", None), vol("b", "a", legality="illegal"), vol("c", "b", "a")], {}),
    "recorded": ([vol("a", None), vol("b", "a", legality="illegal"), vol("c", "a")], {}),
    "top is gone": ([vol("a", None), vol("c", "b", "a")], {}),
    "top cannot be read": ([vol("a", None), vol("b", "a", trouble=ABSENT), vol("c", "b", "a")], {}),
    "one between was dropped": (
        [vol("a", None), vol("b", "a", legality="illegal"), vol("c", "b"), vol("d", "c", "a")],
        {},
    ),
    "the header names something that is not below": (
        [vol("a", None), vol("b", "a"), vol("x", None), vol("c", "b", "x")],
        {},
    ),
    "the header names another image": ([vol("a", None), vol("b", "a"), vol("c", "b", "a", elsewhere=True)], {}),
    "a pull to the end of the chain": ([vol("a", None), vol("b", "a"), vol("c", "b", None)], {"c": "b"}),
    "a pull of the bottom": ([vol("a", None), vol("b", "a", None)], {"b": "a"}),
    "a pull of which the lowest was marked": (
        [vol("a", None, legality="illegal"), vol("b", "a"), vol("c", "b", None)],
        {},
    ),
    "a raw volume stands on nothing": ([vol("a", None), vol("b", "a", None, format="raw")], {}),
    "a circle": ([vol("a", "b"), vol("b", "a"), vol("c", "b", "x")], {}),
}


@pytest.mark.parametrize(("volumes", "back"), UNRECORDED.values(), ids=UNRECORDED)
def test_what_was_not_recorded_is_told_from_what_was(volumes, back):
    assert chain.unrecorded(volumes) == back


def test_a_header_without_a_record_is_put_back(disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    run("qemu-io", "-c", "write -P 7 0 1M", str(disk.folder / v2))
    disk.rebase(v3, v1)  # as QEMU does at the end of a commit, before base's tables are written
    assert disk.storage.put_back(disk.domain, disk.image) == {v3: v2}
    assert disk.storage.put_back(disk.domain, disk.image) == {}
    assert (disk.facts(v3)["backing"], disk.facts(v3)["parent_id"]) == (v2, v2)
    assert [one["backing-filename-format"] for one in qemu_chain(disk.folder / v3)[:2]] == ["qcow2", "qcow2"]
    run("qemu-io", "-r", "-c", "read -P 7 0 1M", str(disk.folder / v3))
    with pytest.raises(errors.VolumeInUse, match="not marked illegal"):
        disk.discard(v2)


def test_a_range_without_a_record_is_put_back(disk):
    v1, v2, v3, v4 = disk.chain("v1", "v2", "v3", "v4")
    disk.rebase(v4, v1)
    assert disk.storage.put_back(disk.domain, disk.image) == {v4: v3}
    assert [one["filename"].rpartition("/")[2] for one in qemu_chain(disk.folder / v4)] == [v4, v3, v2, v1]


def test_a_put_back_that_died_is_finished_by_a_repetition(disk, die_at):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    disk.rebase(v3, v1)
    die_at("volume.put_back.after_header", "put_back", domain=disk.domain, image=disk.image)
    disk.storage.put_back(disk.domain, disk.image)
    assert disk.facts(v3)["backing_id"] == v2


def test_a_header_that_a_qemu_has_open_is_not_put_back(disk, open_in_qemu):
    v1, _v2, v3 = disk.chain("v1", "v2", "v3")
    disk.rebase(v3, v1)
    open_in_qemu(disk.folder / v3)
    with pytest.raises(errors.VolumeInUse):
        disk.storage.put_back(disk.domain, disk.image)
    assert disk.facts(v3)["backing_id"] == v1


def test_a_merge_whose_qemu_is_gone_is_not_recorded(disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    disk.rebase(v3, v1)
    with pytest.raises(errors.JobFailed, match="not recorded"):
        disk.storage.record_merge(disk.domain, disk.image, v1, v2, v3)
    assert disk.facts(v2)["legality"] == "legal"
    disk.storage.put_back(disk.domain, disk.image)
    with pytest.raises(errors.ChainDiffers, match="the merge is not done"):
        disk.storage.record_merge(disk.domain, disk.image, v1, v2, v3, concluded=True)


def test_a_look_for_what_is_to_be_put_back_waits_for_nobody_who_makes_a_volume(disk, other_disk, ids):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    place = layout.Place(disk.domain["path"], disk.domain["id"])
    with files.image_lock(place, other_disk.image):
        maker = threading.Thread(target=other_disk.chain, args=("w1",))
        maker.start()
        limit = time.monotonic() + 30
        while disk.storage._child(disk.domain["path"], MAKE).idle():
            assert time.monotonic() < limit
        assert disk.storage.put_back(disk.domain, disk.image, deadline=3.0) == {}
        assert maker.is_alive()
    maker.join()
    disk.rebase(v3, v1)
    assert disk.storage.put_back(disk.domain, disk.image) == {v3: v2}


def test_a_disk_that_is_not_there_has_nothing_to_put_back(disk):
    with pytest.raises(errors.NotFound):
        disk.storage.put_back(disk.domain, disk.image)
