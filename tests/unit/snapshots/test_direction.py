"""Which way a merge goes, and what is said about it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from services.snapshots import chain, direction, planning
from services.snapshots.direction import Policy
from services.snapshots.facts import DiskFacts
from services.snapshots.plan import MergePlan
from tests.unit.snapshots.looks import GIB, job, look, volume

MIB = 2**20
IDS = ("v0", "v1", "v2", "v3")


def seen(*sizes: int, **rows: Any) -> DiskFacts:
    """v0 <- v1 <- v2 <- v3 with these sizes in MiB; `v1={...}` changes a row."""
    parents = (None, *IDS)
    made = [
        dataclasses.replace(volume(id_, parents[at], actual_size=size * MIB, backing=parents[at]), **rows.get(id_, {}))
        for at, (id_, size) in enumerate(zip(IDS, sizes, strict=True))
    ]
    return look(qemu=list(reversed(IDS)), volumes=made, leaf="v3")


def down(facts: DiskFacts) -> DiskFacts:
    """The same with the VM down."""
    return dataclasses.replace(facts, qemu=look(gone=True).qemu)


def plan(facts: DiskFacts, *removed: str, **policy: Any) -> MergePlan:
    committed = chain.plan_merge("vm", IDS, removed, facts)
    return direction.cheaper(committed, IDS, facts, Policy(on=True, **policy))


def test_a_small_layer_under_a_large_active_one_is_pulled() -> None:
    made = plan(seen(1, 1, 100, 4096), "v2")
    assert (made.kind, made.direction, made.base_id, made.top_id, made.below_id) == ("pull", "pull", "v2", "v3", "v1")
    assert (made.stays, made.gone, made.dropped, made.removed) == ("v3", "v2", ("v2",), ("v2",))
    assert (made.copy, made.needs, made.returns) == (100 * MIB, 100 * MIB, 0)
    assert planning.why(made) == (
        "One layer, up into the one above, which stays; no guest stands still for it. "
        "Pulling copies 100.0 MiB, committing 4.0 GiB."
    )


def test_neighbours_down_to_the_bottom_are_one_pull() -> None:
    made = plan(seen(10, 20, 30, 4096), "v0", "v1", "v2")
    assert (made.base_id, made.top_id, made.below_id, made.between) == ("v0", "v3", None, ("v2", "v1"))
    assert (made.dropped, made.removed) == (("v2", "v1", "v0"), ("v0", "v1", "v2"))
    assert made.copy == 60 * MIB


def test_a_top_that_is_nearly_full_grows_by_what_is_left() -> None:
    facts = seen(1, 1, 100, 10 * 1024 - 30)
    assert (plan(facts, "v2").needs, plan(facts, "v2").returns) == (30 * MIB, 70 * MIB)


COMMITTED: dict[str, tuple[DiskFacts, str]] = {
    "about the same": (seen(1, 1, 1024, 4000), "which is not far more"),
    "little in all": (seen(1, 1, 1, 60), "which is not far more"),
    "base holds more": (seen(1, 1, 4096, 100), "which is not far more"),
    "a layer that no pull may move": (
        seen(1, 1, 100, 4096, v2={"pulls": False}),
        "volume v2 is raw, of an old version",
    ),
    "a leaf that no pull may end in": (seen(1, 1, 100, 4096, v3={"pulls": False}), "or keeps dirty bitmaps"),
    "another folder": (seen(1, 1, 100, 4096, v2={"backing": "../images/v1"}), "in another folder"),
    "a file that is no volume": (
        seen(1, 1, 100, 4096, v2={"backing": "x", "parent_id": None, "backing_id": None}),
        "which is in another folder",
    ),
    "a long name": (seen(1, 1, 100, 4096, v3={"backing": "v2/" * 320}), "a backing file name of 962 bytes"),
}


@pytest.mark.parametrize(("facts", "why"), COMMITTED.values(), ids=COMMITTED)
def test_otherwise_it_is_committed_and_the_plan_says_why(facts: DiskFacts, why: str) -> None:
    bare = MergePlan("vm", "disk", "v2", "v3", None, copy=facts.storage.volumes["v3"].actual_size)
    made = direction.cheaper(bare, IDS, facts, Policy(on=True))
    assert (made.kind, made.direction) == ("active", "commit")
    assert why in planning.why(made)


def test_pulls_are_off_until_somebody_turns_them_on() -> None:
    facts = seen(1, 1, 100, 4096)
    bare = MergePlan("vm", "disk", "v2", "v3", None, copy=facts.storage.volumes["v3"].actual_size)
    made = direction.cheaper(bare, IDS, facts, direction.RULE)
    assert made.kind == "active"
    why = "pulling would copy 100.0 MiB, committing 4.0 GiB: the VM runs, and pulls are off then (DRYSTONE_PULLS)"
    assert why in planning.why(made)
    assert direction.cheaper(bare, IDS, down(facts), direction.RULE).kind == "pull"


def test_without_anything_below_no_name_is_written() -> None:
    facts = seen(100, 10, 10, 4096, v3={"backing": "v2/" * 320})
    assert plan(facts, "v0", "v1", "v2").kind == "pull"


def test_only_the_active_volume_is_pulled_into_while_the_vm_runs() -> None:
    facts = seen(1, 100, 4096, 1)
    assert plan(facts, "v1").kind == "internal"
    made = plan(down(facts), "v1")
    assert (made.kind, made.base_id, made.top_id, made.child_id, made.below_id) == ("pull", "v1", "v2", "v3", "v0")
    assert (made.carrier, made.ground, made.stays, made.dropped) == ("v2", "v0", "v2", ("v1",))


def test_a_vm_that_is_down_is_not_pulled_over_volumes_of_different_sizes() -> None:
    facts = down(seen(1, 1, 100, 4096, v3={"capacity": 2 * GIB}))
    made = plan(facts, "v2")
    assert made.kind == "active"
    assert "volume v2 has another size than v3" in planning.why(made)


def test_what_is_not_pulled_inside_a_chain_says_why_too() -> None:
    assert planning.why(plan(down(seen(1, 1000, 1024, 1)), "v1")).endswith(
        "the guest does not write to it. Not pulled: pulling would copy 1000.0 MiB, committing 1.0 GiB, which is not "
        "far more."
    )


def test_a_pull_stays_one_as_long_as_it_may() -> None:
    facts = seen(1, 1, 100, 4096)
    made = plan(facts, "v2")
    for now in (facts, down(facts)):
        assert direction.now(made, IDS, now, Policy(on=True)) is made
    assert direction.now(made, IDS, down(facts), Policy(on=False)) is made
    left = dataclasses.replace(facts, qemu=dataclasses.replace(facts.qemu, chain=("v3", "v1", "v0")))
    assert direction.now(made, IDS, left, Policy(on=False)) is made, "QEMU is done with it"
    pulls = dataclasses.replace(facts, offline=job(made, 5, type="offline_pull"))
    assert direction.now(made, IDS, pulls, Policy(on=False)) is made, "somebody is at work"
    committed = MergePlan("vm", "disk", "v2", "v3", None)
    assert direction.now(committed, IDS, down(facts), Policy(on=True)) is committed


def test_a_pull_that_is_barred_later_is_the_commit_that_it_was_not() -> None:
    facts = seen(1, 1, 100, 4196)
    back = direction.now(plan(facts, "v1", "v2"), IDS, facts, Policy(on=False))
    assert (back.kind, back.below_id, back.dropped) == ("active", None, ("v3", "v2"))
    assert (back.copy, back.needs) == (4296 * MIB, 4296 * MIB)
    said = "It was to be pulled, but now the VM runs, and pulls are off then (DRYSTONE_PULLS)."
    assert planning.why(back).endswith(said)


def test_a_pull_inside_a_chain_is_a_commit_once_the_vm_runs() -> None:
    facts = seen(1, 100, 4096, 1)
    back = direction.now(plan(down(facts), "v1"), IDS, facts, Policy(on=True))
    assert (back.kind, back.child_id, back.dropped, back.copy) == ("internal", "v3", ("v2",), 4096 * MIB)
    assert "libvirt pulls into its active volume only" in planning.why(back)


def test_the_rule_is_an_administrators() -> None:
    facts = seen(1, 1, 30, 60)
    assert plan(facts, "v2", ratio=2.0, saves=0).kind == "pull"
    assert plan(facts, "v2", ratio=2.0, saves=31 * MIB).kind == "active"
    assert plan(facts, "v2", ratio=2.1, saves=0).kind == "active"


def test_a_chain_with_a_pull_needs_what_its_parts_need() -> None:
    facts = dataclasses.replace(seen(GIB // MIB, 3 * GIB // MIB, 100, 4096))
    looked = planning.Seen("vm", "host", "domain", "/mnt", IDS, facts, 0, 0, Policy(on=True))
    wanted = [planning.Wanted(f"s-{id_}", "disk", "vm", id_, "") for id_ in ("v0", "v2")]
    planned, refused = planning.plan_chain(looked, wanted)
    assert refused == []
    assert [(one.plan.kind, one.plan.needs) for one in planned] == [("pull", 100 * MIB), ("internal", 3 * GIB)]
    assert planning.peak(planned, 1, 1) == 3 * GIB
