"""The rules of chains, as tables: what the storage shows -> which volume is the leaf."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import errors
from services.hostagent import chain
from services.hostagent.chain import Volume

BROKEN = errors.ChainBroken(disk_id="d", reason="the header is damaged")


def v(name: str, on: str | None = None, *, record: str | None = "same", **more) -> Volume:
    """A volume that stands on another, by header and by record."""
    return Volume(name, parent=on if record == "same" else record, backing=on, backing_name=on, **more)


def illegal(name: str, on: str | None = None, **more) -> Volume:
    return v(name, on, legality="illegal", **more)


# name of the moment -> volumes -> the leaf
MOMENTS = {
    "one volume": ([v("a")], "a"),
    "two snapshots": ([v("a"), v("b", "a"), v("c", "b")], "c"),
    "a new volume is made, QEMU still writes the old one": ([v("a"), v("b", "a")], "b"),
    "active commit runs or is ready": ([v("base"), v("top", "base")], "top"),
    "active commit pivoted and marked": ([v("base"), illegal("top", "base")], "base"),
    "active commit marked, top's header is gone": ([v("base"), illegal("top", trouble=BROKEN)], "base"),
    "internal commit runs": ([v("base"), v("top", "base"), v("child", "top")], "child"),
    "internal commit done, not recorded": (
        [v("base"), v("top", "base"), v("child", "base", record="top")],
        "child",
    ),
    "internal commit, top marked, child not recorded": (
        [v("base"), illegal("top", "base"), v("child", "base", record="top")],
        "child",
    ),
    "internal commit recorded": ([v("base"), illegal("top", "base"), v("child", "base")], "child"),
    "a range pivoted, its top marked with its heir": (
        [v("base"), v("m1", "base"), v("m2", "m1"), illegal("top", "m2", heir="base")],
        "base",
    ),
    "the same, top's header is gone": (
        [v("base"), v("m", "base"), illegal("top", record="m", trouble=BROKEN, heir="base")],
        "base",
    ),
    "the same, a record between is gone": (
        [v("base"), v("m1", "base"), v("m2", "m1", record=None), illegal("top", "m2", heir="base")],
        "base",
    ),
    "a range marked in part": (
        [v("base"), v("m1", "base"), illegal("m2", "m1"), illegal("top", "m2", heir="base")],
        "base",
    ),
    "an internal range done, not recorded": (
        [v("base"), v("m", "base"), v("top", "m"), v("child", "base", record="top")],
        "child",
    ),
    "an internal range, top marked, nothing else": (
        [v("base"), v("m", "base"), illegal("top", "m", heir="base"), v("child", "base", record="top")],
        "child",
    ),
    "an heir that is gone": ([v("base"), illegal("top", "base", heir="gone")], "base"),
    "recorded ahead of QEMU's rewrite of the header": (
        [v("base"), v("top", "base"), v("child", "top", record="base")],
        "child",
    ),
    "top of the lowest pair dropped": ([v("a"), illegal("b", "a"), v("c", "a"), v("d", "c")], "d"),
    "a clone of a template": ([v("clone", "template", elsewhere=True)], "clone"),
    "a raw base": ([v("a", format="raw"), v("b", "a")], "b"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_marks_name_one_leaf_at_every_moment(moment):
    volumes, leaf = MOMENTS[moment]
    assert chain.find_leaf("d", volumes) == chain.Verdict(leaf)


TROUBLES = {
    "no volume": ([], "no volume"),
    "two chains": ([v("a"), v("b")], "2 leaves: a, b"),
    "two children": ([v("a"), v("b", "a"), v("c", "a")], "2 leaves: b, c"),
    "all dropped": ([illegal("a")], "every volume is marked illegal"),
    "a circle": ([v("a", "b"), v("b", "a")], "in a circle"),
    "somebody stands on what a range passes over": (
        [v("base"), v("m", "base"), illegal("top", "m", heir="base"), v("x", "m")],
        "2 leaves: base, x",
    ),
    "a circle below the leaf": ([v("a", "b"), v("b", "a"), v("c", "b")], "stands on itself"),
    "on itself": ([v("a", "a")], "stands on itself"),
    "a missing base": ([v("b", "a")], "a is missing; b stands on it"),
    "a dropped base": ([illegal("a"), v("b", "a")], "a is marked illegal, yet b stands on it"),
    "a damaged leaf": ([v("a"), v("b", trouble=BROKEN, record="a")], "header is damaged"),
    "a damaged base": ([v("a", trouble=BROKEN), v("b", "a")], "header is damaged"),
}


@pytest.mark.parametrize("case", TROUBLES)
def test_where_there_is_no_sound_leaf_the_reason_is_said(case):
    volumes, says = TROUBLES[case]
    verdict = chain.find_leaf("d", volumes)
    assert verdict.leaf is None
    assert says in str(verdict.trouble)


def test_a_damaged_volume_that_is_out_of_the_chain_does_no_harm():
    volumes = [v("a"), illegal("b", trouble=BROKEN), v("c", "a")]
    assert chain.find_leaf("d", volumes).leaf == "c"


def test_a_chain_is_told_leaf_first():
    assert chain.walk("d", [v("a"), v("b", "a"), v("c", "b")], "c") == ("c", "b", "a")


def test_a_chain_ends_where_it_enters_another_image():
    assert chain.walk("d", [v("b", "t", elsewhere=True)], "b") == ("b",)


def test_a_missing_leaf_and_a_dropped_leaf_are_named():
    with pytest.raises(errors.ChainBroken, match="volume x is missing"):
        chain.walk("d", [], "x")
    with pytest.raises(errors.ChainBroken, match="volume x is marked illegal"):
        chain.walk("d", [illegal("x")], "x")


def test_an_endless_chain_is_cut(monkeypatch):
    monkeypatch.setattr(chain, "MAX_DEPTH", 3)
    volumes = [v("a"), v("b", "a"), v("c", "b"), v("d", "c")]
    assert "more than 3" in str(chain.find_leaf("d", volumes).trouble)


def test_children_are_found_by_header_and_by_record():
    volumes = [v("a"), v("b", "a"), illegal("c", "x", record="a")]
    assert chain.children(volumes, "a") == ["b", "c"]
    assert chain.children(volumes, "b") == []


# -- any history, stopped at any moment -------------------------------------------------------------------


class History:
    """Volumes on a storage while snapshots are taken and merged, in the small steps in which it really happens.

    After every step the rule must name the volume that holds every acknowledged write."""

    def __init__(self) -> None:
        self.volumes = {"v0": v("v0")}
        self.line = ["v0"]  # the chain as a guest sees it, base first
        self.made = 0

    def check(self) -> None:
        assert chain.find_leaf("d", list(self.volumes.values())).leaf == self.line[-1]

    def change(self, name: str, **changes) -> None:
        self.volumes[name] = replace(self.volumes[name], **changes)
        self.check()

    def snapshot(self) -> None:
        self.made += 1
        name = f"v{self.made}"
        self.volumes[name] = v(name, self.line[-1])
        self.line.append(name)
        self.check()

    def merge(self, at: int, layers: int = 1) -> None:
        """Merge so many volumes, from this place of the line up, down into the one below them."""
        base, *between, top = self.line[at - 1 : at + layers]
        heir = base if between else None
        child = self.line[at + layers] if at + layers < len(self.line) else None
        for name in (*between, top):
            self.line.remove(name)
        if child is not None:
            self.change(child, backing=base, backing_name=base)
        # from a pivot on, while both read the same, either end may be named; the mark decides
        self.change(top, legality="illegal", heir=heir)
        for name in reversed(between):
            self.change(name, legality="illegal")
        if child is not None:
            self.change(child, parent=base)

    def discard(self) -> None:
        """Delete every dropped volume; one that a dropped one still refers to goes after that."""
        while names := [n for n, x in self.volumes.items() if x.legality == "illegal"]:
            free = [n for n in names if not chain.children(self.volumes.values(), n)]
            assert free, "dropped volumes hold each other"
            del self.volumes[free[0]]
            self.check()


@given(
    st.lists(
        st.sampled_from(["snapshot", "merge", "discard"]) | st.integers(1, 20) | st.tuples(st.integers(1, 20)),
        max_size=40,
    )
)
def test_after_any_history_the_marks_name_the_one_leaf(moves):
    history = History()
    for move in moves:
        if move == "snapshot" or len(history.line) == 1:
            history.snapshot()
        elif move == "discard":
            history.discard()
        elif isinstance(move, tuple):
            at = 1 + move[0] % (len(history.line) - 1)
            history.merge(at, min(4, len(history.line) - at))
        else:
            history.merge(len(history.line) - 1 if move == "merge" else 1 + move % (len(history.line) - 1))
    history.discard()
    assert sorted(history.volumes) == sorted(history.line)
    assert chain.walk("d", list(history.volumes.values()), history.line[-1]) == tuple(reversed(history.line))


@pytest.mark.parametrize(
    ("others", "again"),
    [
        ([v("base"), v("top", "base")], {"leaf": "top"}),
        ([v("base"), v("middle", "base"), v("top", "middle")], {"leaf": "top"}),
        ([v("base")], {}),  # what the record names is gone: discarded, so the merge was recorded in all but this
        ([v("base"), illegal("top", "base")], {}),
        ([v("top", "base")], {}),  # there is nothing at the end of it
        ([v("base"), v("loop", "top"), v("top", "loop")], {}),
        ([v("base"), v("top")], {}),
    ],
)
def test_an_unrecorded_merge_is_seen_where_the_old_volumes_still_count(others, again):
    assert chain.unrecorded([*others, v("leaf", "base", record="top")]) == again
