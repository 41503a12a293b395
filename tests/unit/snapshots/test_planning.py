"""The plan of a removal: order, bytes, the peak of space, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import errors
from services.snapshots import planning
from services.snapshots.facts import DiskFacts
from services.snapshots.plan import MergePlan
from services.snapshots.planning import Planned, Seen, Wanted
from tests.unit.snapshots.looks import GIB, look, volume


def chain_of(*sizes: int, **more: object) -> tuple[tuple[str, ...], DiskFacts]:
    """A chain v0 <- v1 ... with these sizes in GiB, seen on a running VM."""
    ids = tuple(f"v{number}" for number in range(len(sizes)))
    parents = (None, *ids)
    rows = [volume(id_, parents[at], actual_size=sizes[at] * GIB) for at, id_ in enumerate(ids)]
    return ids, look(qemu=list(reversed(ids)), volumes=rows, leaf=ids[-1], **more)  # type: ignore[arg-type]


def wanted(*volumes: str) -> list[Wanted]:
    return [Wanted(f"s-{id_}", "disk", "vm", id_, id_) for id_ in volumes]


def seen(chain: tuple[str, ...], facts: DiskFacts, promised: int = 0, reserve: int = GIB) -> Seen:
    return Seen("vm", "host", "domain", "/mnt", chain, facts, promised, reserve)


def plan(
    made: tuple[tuple[str, ...], DiskFacts], *volumes: str, **more: Any
) -> tuple[list[Planned], list[tuple[str, str]]]:
    planned, refused = planning.plan_chain(seen(*made, **more), wanted(*volumes))
    return planned, [(one.wanted.volume_id, one.problem.code) for one in refused]


def test_neighbours_become_one_merge_and_apart_ones_two() -> None:
    planned, refused = plan(chain_of(5, 1, 1, 3, 1, 1), "v0", "v1", "v3")
    assert refused == []
    assert [(one.position, one.plan.removed, one.plan.dropped) for one in planned] == [
        (1, ("v3",), ("v4",)),
        (2, ("v0", "v1"), ("v2", "v1")),
    ]
    assert [one.plan.child_id for one in planned] == ["v5", "v3"]
    assert [[part.snapshot_id for part in one.wanted] for one in planned] == [["s-v3"], ["s-v0", "s-v1"]]


def test_a_block_is_counted_once_however_many_layers_may_have_it() -> None:
    planned, _ = plan(chain_of(2, 6, 6, 6), "v0", "v1", "v2")
    (one,) = planned
    assert one.plan.copy == 10 * GIB  # the image has 10 GiB, the layers 18
    assert one.plan.needs == 8 * GIB
    assert one.plan.returns == 10 * GIB
    assert "3 layers in one job" in planning.why(one.plan)


REFUSED = {
    "not in the chain": (chain_of(1, 1, 1), {"x": "chain_differs"}),
    "the active one": (chain_of(1, 1, 1), {"v2": "chain_differs"}),
    "no space": (chain_of(1, 5, 1, free=5 * GIB), {"v0": "no_space"}),
    "unsure": (chain_of(1, 1, 1, unsure="they differ"), {"v0": "vm_unsure", "v1": "vm_unsure"}),
}


@pytest.mark.parametrize(("made", "refused"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_its_reason(
    made: tuple[tuple[str, ...], DiskFacts], refused: dict[str, str]
) -> None:
    planned, found = plan(made, *refused)
    assert planned == []
    assert dict(found) == refused


def test_one_refusal_does_not_drag_the_rest_down() -> None:
    ids, facts = chain_of(1, 1, 1, 1, 1, 1)
    clone = volume("clone", "v2")
    facts = dataclasses.replace(
        facts, storage=dataclasses.replace(facts.storage, volumes={**facts.storage.volumes, "clone": clone})
    )
    planned, refused = plan((ids, facts), "v0", "v1", "v2", "v3", "v4")
    assert sorted(one.plan.removed for one in planned) == [("v0",), ("v3", "v4")]
    assert refused == [("v1", "volume_in_use"), ("v2", "volume_in_use")]


def test_names_that_would_grow_too_long_are_refused_where_they_do() -> None:
    ids, facts = chain_of(*[1] * 40)
    long = {
        id_: dataclasses.replace(row, backing=f"../{'i' * 36}/{row.backing_id}" if row.backing_id else None)
        for id_, row in facts.storage.volumes.items()
    }
    facts = dataclasses.replace(facts, storage=dataclasses.replace(facts.storage, volumes=long))
    planned, refused = plan((ids, facts), *ids[:30])
    assert len(planned[0].plan.removed) == 21
    assert {code for _, code in refused} == {"backing_too_long"}
    assert len(refused) == 9
    down = dataclasses.replace(facts, qemu=dataclasses.replace(facts.qemu, state="absent", chain=(), paths=()))
    planned, refused = plan((ids, down), *ids[:30])
    assert (len(planned[0].plan.removed), refused) == (30, [])


def test_what_is_refused_takes_the_rest_of_its_snapshot_along() -> None:
    parts = [Wanted(snapshot, disk, "vm", f"{snapshot}{disk}", "") for snapshot in "ab" for disk in "xy"]
    busy, gone = errors.DiskBusy(disk_id="x", flow_id="j"), errors.NotFound(kind="disk", id="y")
    assert planning.together(parts, {parts[0]: busy}) == {parts[0]: busy, parts[1]: busy}
    assert planning.together(parts, {parts[2]: busy, parts[3]: gone}) == {parts[2]: busy, parts[3]: gone}
    assert planning.together(parts, {}) == {}


# -- space ------------------------------------------------------------------------------------------------

sizes = st.integers(0, 1000)


@st.composite
def merges(draw: st.DrawFn, disk: str = "disk") -> MergePlan:
    copy = draw(sizes)
    needs = draw(st.integers(0, copy))
    return MergePlan("vm", disk, "b", "t", None, copy, needs, copy - needs)


def peak_of(plans: tuple[MergePlan, ...] | list[MergePlan]) -> int:
    """The highest need over a chain's merges one after the other: base grows, then the dropped layers go."""
    highest = here = 0
    for one in plans:
        highest = max(highest, here + one.needs)
        here += one.needs - (one.needs + one.returns)
    return highest


@given(st.lists(merges(), max_size=5))
def test_no_other_order_needs_less_space(plans: list[MergePlan]) -> None:
    best = peak_of(planning.in_order(plans))
    assert all(best <= peak_of(order) for order in itertools.permutations(plans))


@st.composite
def worlds(draw: st.DrawFn) -> list[Planned]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        plans = draw(st.lists(merges(disk=f"d{number}"), min_size=1, max_size=4))
        host = draw(st.sampled_from(["h1", "h2"]))
        ordered = planning.in_order(plans)
        found += [Planned(one, (), host, "domain", "/", 0, at) for at, one in enumerate(ordered, 1)]
    return found


@given(worlds(), st.integers(1, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_no_way_of_running_them_needs_more_than_the_peak(
    planned: list[Planned], per_host: int, per_domain: int, random: object
) -> None:
    told = planning.peak(planned, per_host, per_domain)
    running: list[Planned] = []
    waiting, here = list(planned), 0
    while waiting or running:
        ready = [
            one
            for one in waiting
            if one.plan.disk_id not in {other.plan.disk_id for other in running}
            and sum(other.host_id == one.host_id for other in running) < per_host
            and len(running) < per_domain
            and not any(o.plan.disk_id == one.plan.disk_id and o.position < one.position for o in waiting)
        ]
        if ready and random.random() < 0.7:  # type: ignore[attr-defined]
            one = random.choice(ready)  # type: ignore[attr-defined]
            waiting.remove(one)
            running.append(one)
            here += one.plan.needs
            assert here <= told
        elif running:
            one = random.choice(running)  # type: ignore[attr-defined]
            running.remove(one)
            here -= one.plan.needs + one.plan.returns


def test_the_sums_of_each_domain() -> None:
    def one(disk: str, host: str, domain: str, needs: int) -> Planned:
        return Planned(MergePlan("vm", disk, "b", "t", None, 10, needs, 10 - needs), (), host, domain, "/", 0, 1)

    planned = [one("a", "h1", "x", 5), one("b", "h1", "x", 4), one("c", "h1", "x", 3), one("d", "h2", "x", 2)]
    sums = planning.sums([*planned, one("e", "h2", "y", 1)], per_host=2, per_domain=3)
    assert sums["x"] == planning.Sums(merges=4, copy=40, needs=5 + 4 + 2, returns=26)
    assert sums["y"] == planning.Sums(merges=1, copy=10, needs=1, returns=9)


def test_reasons_are_sentences() -> None:
    for child in (None, "c"):
        for between in ((), ("m",)):
            sentence = planning.why(MergePlan("vm", "disk", "b", "t", child, between=between))
            assert sentence[0].isupper() or sentence[0].isdigit()
            assert sentence.endswith(".")


def test_a_problem_of_planning_is_a_declared_one() -> None:
    planned, refused = planning.plan_chain(seen(*chain_of(1, 1)), wanted("gone"))
    assert planned == []
    assert isinstance(refused[0].problem, errors.ChainDiffers)
