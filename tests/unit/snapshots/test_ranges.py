"""Which volumes go down together: no block twice, nothing lost, no name too long."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.snapshots import ranges

CHAIN = ("v1", "v2", "v3", "v4", "v5", "v6")
RUNS = {
    "one": ({"v2"}, [("v2",)]),
    "neighbours": ({"v1", "v2", "v3"}, [("v1", "v2", "v3")]),
    "up to the active one": ({"v4", "v5"}, [("v4", "v5")]),
    "all snapshots": ({"v1", "v2", "v3", "v4", "v5"}, [("v1", "v2", "v3", "v4", "v5")]),
    "one stays between": ({"v1", "v3", "v4"}, [("v1",), ("v3", "v4")]),
    "the active one is no snapshot's": ({"v5", "v6"}, [("v5",)]),
    "not in the chain": ({"x"}, []),
    "none": (set(), []),
}


@pytest.mark.parametrize(("removed", "runs"), RUNS.values(), ids=RUNS)
def test_neighbours_go_down_together(removed: set[str], runs: list[tuple[str, ...]]) -> None:
    assert ranges.ranges(CHAIN, removed) == runs


def test_a_volume_that_others_use_stays_and_splits_the_range() -> None:
    assert ranges.ranges(CHAIN, set(CHAIN), kept={"v3"}) == [("v1",), ("v4", "v5")]
    assert ranges.ranges(CHAIN, {"v2", "v3"}, kept={"v4"}) == [("v2",)]


chains = st.integers(1, 30).map(lambda size: tuple(f"v{number}" for number in range(size)))


@st.composite
def removals(draw: st.DrawFn) -> tuple[tuple[str, ...], set[str], set[str]]:
    chain = draw(chains)
    return chain, draw(st.sets(st.sampled_from(chain))), draw(st.sets(st.sampled_from(chain), max_size=3))


def merged(chain: tuple[str, ...], run: tuple[str, ...]) -> tuple[str, ...]:
    """The chain after base took in all above it up to top."""
    base = chain.index(run[0])
    assert chain[base : base + len(run)] == run
    return chain[: base + 1] + chain[base + 1 + len(run) :]


@given(removals())
def test_every_layer_goes_down_once_in_any_order(made: tuple[tuple[str, ...], set[str], set[str]]) -> None:
    chain, removed, kept = made
    runs = ranges.ranges(chain, removed, kept)
    touched = [volume for run in runs for volume in (*run, chain[chain.index(run[-1]) + 1])]
    assert len(touched) == len(set(touched)), "ranges have a volume in common"
    assert not set(touched) & kept
    one_way, other_way = chain, chain
    for run in runs:
        one_way = merged(one_way, run)
    for run in reversed(runs):
        other_way = merged(other_way, run)
    assert one_way == other_way
    assert len(chain) - len(one_way) == sum(map(len, runs))


@given(removals())
def test_what_can_go_goes_and_ranges_are_as_long_as_they_can_be(
    made: tuple[tuple[str, ...], set[str], set[str]],
) -> None:
    chain, removed, kept = made
    runs = ranges.ranges(chain, removed, kept)
    gone = {volume for run in runs for volume in run}
    for own, above in itertools.pairwise(chain):
        assert (own in gone) == (own in removed and not {own, above} & kept)
    ends = {run[-1] for run in runs}
    assert not any(chain[chain.index(end) + 1] in gone for end in ends), "two neighbours in two jobs"


# -- names ------------------------------------------------------------------------------------------------

FOLDER = "../11111111-1111-1111-1111-111111111111/"
LONG = tuple(f"{number:08d}-2222-2222-2222-222222222222" for number in range(62))
BARE = {above: below for below, above in itertools.pairwise(LONG)}
GROWN = {above: FOLDER + below for above, below in BARE.items()}


def test_sixty_layers_with_bare_names_go_down_in_one_job() -> None:
    assert ranges.cut(LONG, LONG[:60], BARE) == (LONG[:60], 36)


def test_grown_names_cut_a_range_before_the_name_is_too_long() -> None:
    fitting, size = ranges.cut(LONG, LONG[:60], GROWN)
    assert fitting == LONG[:20]
    assert size == 61 * 40 + 36  # every name from the child down, each folder kept
    assert ranges.cut(LONG, LONG[40:60], GROWN)[0] == LONG[40:60]


def test_no_name_is_written_above_an_active_top() -> None:
    assert ranges.cut(LONG, LONG[:61], GROWN) == (LONG[:61], 0)


def test_a_name_that_is_too_long_already_lets_nothing_go() -> None:
    names = {**BARE, LONG[2]: "x" * 890 + "/" + LONG[1]}
    assert ranges.cut(LONG, LONG[:1], names)[0] == ()


@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from([BARE, GROWN]))
def test_what_is_let_through_never_writes_a_long_name(length: int, start: int, names: dict[str, str]) -> None:
    run = LONG[start : start + length][: max(0, 61 - start)]
    if not run:
        return
    fitting, _ = ranges.cut(LONG, run, names)
    assert run[: len(fitting)] == fitting
    top = LONG.index(run[0]) + len(fitting)
    if fitting and top + 1 < len(LONG):
        folders = sum(names[volume].startswith(FOLDER) for volume in LONG[start + 1 : top + 2])
        assert folders * len(FOLDER) + 36 <= ranges.MAX_BACKING
