"""Records that follow what lies on the storage, after somebody else changed a chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracts import errors
from services.hostagent import chain as rules
from services.hostagent.chain import Volume
from tests.unit.hostagent.storage.room import MiB

POINTS = ["volume.chain.after_mark", "volume.chain.after_record"]


def record(disk, ids, unused=(), *, live=False):
    disk.storage.record_chain(disk.domain, disk.image, list(ids), list(unused), live)


def parents(disk):
    return {v["volume_id"]: (v["parent_id"], v["volume_type"]) for v in disk.view()["volumes"] if _legal(v)}


def _legal(volume):
    return volume["legality"] == "legal"


@pytest.fixture
def merged(disk):
    """v1 <- v2 <- v3 <- v4, of which v2 and v3 were merged down behind our back."""
    v1, v2, v3, v4 = disk.chain("v1", "v2", "v3", "v4")
    disk.rebase(v4, v1)
    return v1, v2, v3, v4


def test_metadata_follow_the_headers_and_what_left_the_chain_is_marked(disk, merged):
    v1, v2, v3, v4 = merged
    record(disk, [v4, v1], [v2, v3])
    assert parents(disk) == {v1: (None, "internal"), v4: (v1, "leaf")}
    assert disk.leaf == v4
    for left in (v3, v2):
        disk.discard(left)
    assert len(disk.files()) == 6


def test_what_a_running_qemu_writes_to_becomes_the_leaf(disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    with pytest.raises(errors.ChainDiffers, match="leaf"):
        record(disk, [v2, v1], [v3])
    assert disk.leaf == v3
    record(disk, [v2, v1], [v3], live=True)
    assert (disk.leaf, disk.facts(v3)["legality"], disk.facts(v2)["volume_type"]) == (v2, "illegal", "leaf")


def test_doing_it_again_changes_nothing(disk, merged):
    v1, v2, v3, v4 = merged
    record(disk, [v4, v1], [v2, v3])
    before = [(disk.folder / name).read_bytes()[:MiB] for name in disk.files()]
    record(disk, [v4, v1], [v2, v3])
    assert [(disk.folder / name).read_bytes()[:MiB] for name in disk.files()] == before


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("live", [True, False])
def test_one_that_died_names_no_wrong_leaf_and_is_finished_by_a_repetition(point, live, die_at, disk, merged):
    v1, v2, v3, v4 = merged
    chain, unused = ([v1], [v2, v3, v4]) if live else ([v4, v1], [v2, v3])
    args = {"domain": disk.domain, "image": disk.image, "ids": chain, "unused": unused, "live": live}
    die_at(point, "record_chain", **args)
    assert disk.leaf in (chain[0], v4)
    record(disk, chain, unused, live=live)
    assert disk.leaf == chain[0]


def test_one_that_died_after_its_first_mark_names_what_qemu_writes_to(die_at, disk):
    v1, v2, v3, v4 = disk.chain("v1", "v2", "v3", "v4")
    args = {"domain": disk.domain, "image": disk.image, "ids": [v1], "unused": [v2, v3, v4], "live": True}
    die_at("volume.chain.after_mark", "record_chain", **args)
    assert disk.leaf == v1


def vol(id_, parent, backing="", **more):
    return Volume(id_, parent=parent, backing=parent if backing == "" else backing, **more)


FOUR = [vol("a", None), vol("b", "a"), vol("c", "b"), vol("d", "c")]
MARKED = {
    "the active ones went down": (FOUR, ["a"], ["b", "c", "d"], [("d", "a"), ("b", None), ("c", None)]),
    "a range below the leaf": ([*FOUR[:3], vol("d", "c", "a")], ["d", "a"], ["c", "b"], [("c", "a"), ("b", None)]),
    "one alone": ([*FOUR[:2], vol("c", "b", "a")], ["c", "a"], ["b"], [("b", None)]),
    "two ranges": (
        [*FOUR, vol("e", "d", "b"), vol("f", "e"), vol("g", "f")],
        ["e", "b", "a"],
        ["c", "d", "f", "g"],
        [("g", "e"), ("d", "b"), ("c", None), ("f", None)],
    ),
    "all was pulled up": (
        [*FOUR[:3], vol("d", "c", None)],
        ["d"],
        ["c", "b", "a"],
        [("a", None), ("b", None), ("c", None)],
    ),
    "by its header it stands on what is in use": (
        [*FOUR[:3], vol("d", "c"), vol("e", "b", "c"), vol("f", "e")],
        ["c", "b", "a"],
        ["d", "e", "f"],
        [("e", None), ("d", None), ("f", None)],
    ),
}


@pytest.mark.parametrize(("volumes", "ids", "unused", "marks"), MARKED.values(), ids=MARKED)
def test_no_mark_on_the_way_makes_another_one_the_leaf(volumes, ids, unused, marks):
    now = {one.id: one for one in volumes}
    before = rules.find_leaf("x", volumes).leaf
    assert rules.marks_in_order(now, ids, unused) == marks
    for id_, heir in marks:
        now[id_] = replace(now[id_], legality="illegal", heir=heir)
        assert rules.find_leaf("x", now.values()).leaf in (before, ids[0])
    assert rules.find_leaf("x", now.values()).leaf == ids[0]


@pytest.mark.parametrize(("volumes", "ids", "unused", "marks"), MARKED.values(), ids=MARKED)
def test_nor_does_one_where_those_above_the_leaf_are_marked_before_the_others(volumes, ids, unused, marks):
    now = {one.id: one for one in volumes}
    before = rules.find_leaf("x", volumes).leaf
    for round_ in (rules.above(now, ids, unused), unused):
        for id_, heir in rules.marks_in_order(now, ids, round_):
            now[id_] = replace(now[id_], legality="illegal", heir=heir)
            assert rules.find_leaf("x", now.values()).leaf in (before, ids[0])
        assert rules.find_leaf("x", now.values()).leaf == ids[0]


REFUSED = {
    "a chain that the headers do not show": (["v4", "v3", "v1"], ["v2"], errors.ChainDiffers),
    "a volume of the chain": (["v4", "v1"], ["v1", "v2", "v3"], errors.VolumeInUse),
    "one that would leave two leaves": (["v1"], ["v4", "v2"], errors.ChainBroken),
    "a volume that is not there": (["v4", "v1"], ["v9"], errors.NotFound),
}


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize(("chain", "unused", "error"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_written(disk, chain, unused, error):
    ids = disk.ids
    before = parents(disk)
    with pytest.raises(error):
        record(disk, [getattr(ids, word) for word in chain], [getattr(ids, word) for word in unused], live=True)
    assert parents(disk) == before


def test_ids_are_checked_before_they_become_paths(disk):
    (v1,) = disk.chain("v1")
    with pytest.raises(errors.BadRequest, match="Not UUIDs"):
        record(disk, [v1], ["../../etc/passwd"])
