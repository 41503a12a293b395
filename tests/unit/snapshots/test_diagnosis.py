"""What the doctor says of a disk: every difference by name, what a repair would change, and what it refuses."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

import pytest

from contracts import doctor, errors
from services.snapshots.books import Books, Holder, Line
from services.snapshots.diagnosis import Diagnosis, diagnose
from services.snapshots.facts import DiskFacts
from services.snapshots.repair import Plan
from tests.unit.snapshots.looks import ACTIVE, CHAIN, job, look, volume

HELD = {"v1": Holder("s1", "first"), "v2": Holder("s2", "second")}


def books(
    chain: tuple[str, ...] = CHAIN,
    *,
    held: dict[str, Holder] | None = None,
    busy: str | None = None,
    vm_id: str | None = "vm",
    more: dict[str, Line] | None = None,
) -> Books:
    lines = {child: Line(parent) for parent, child in zip((None, *chain), chain, strict=False)}
    holders = {id_: holder for id_, holder in HELD.items() if id_ in chain[:-1]} if held is None else held
    return Books("disk", vm_id, chain[-1], {**lines, **(more or {})}, holders, busy)


def codes(found: Diagnosis) -> list[str]:
    return [one.code for one in found.differences]


def planned(known: Books, facts: DiskFacts) -> Plan:
    found = diagnose(known, facts)
    assert found.plan is not None, found.blocked
    return found.plan


# -- what a hand outside of Drystone leaves behind --------------------------------------------------------


def merged_inside() -> DiskFacts:
    """virsh blockcommit --base v1 --top v2: QEMU and v3's header skip v2, the metadata do not know."""
    return look(qemu=["v3", "v1"], headers={"v3": "v1"})


def pivoted() -> DiskFacts:
    """virsh blockcommit --active --pivot: QEMU writes to v2, the marks name v3."""
    return look(qemu=["v2", "v1"])


def grown() -> DiskFacts:
    """A volume that another system put on top."""
    return look(qemu=["v4", "v3", "v2", "v1"], volumes=[*_three(), volume("v4", "v3")], leaf="v4")


def _three() -> list:
    return [volume("v1", None), volume("v2", "v1"), volume("v3", "v2")]


# -- healthy ----------------------------------------------------------------------------------------------


def test_four_views_that_agree_have_no_difference_and_nothing_to_repair() -> None:
    found = diagnose(books(), look())
    assert (codes(found), found.plan) == ([], Plan(truth=CHAIN))


@pytest.mark.parametrize("facts", [look(gone=True), look(state="paused")])
def test_so_do_those_of_a_vm_that_is_down_or_paused(facts: DiskFacts) -> None:
    assert codes(diagnose(books(), facts)) == []


def test_a_disk_that_never_had_a_snapshot_is_held_against_its_first_volume() -> None:
    fresh = dataclasses.replace(books(("v1",)), known=False)
    assert codes(diagnose(fresh, look(volumes=[volume("v1", None)], qemu=["v1"], leaf="v1"))) == []


def test_rows_show_what_each_side_sees() -> None:
    rows = diagnose(books(), pivoted()).rows
    seen = [(row["volume_id"], row["qemu"], row["storage"], row["libvirt"], row["database"]) for row in rows]
    assert seen == [
        ("v1", "reads", "chain", "reads", "chain"),
        ("v2", "writes", "chain", "writes", "chain"),
        ("v3", None, "leaf", None, "active"),
    ]
    assert [row["description"] for row in rows] == ["first", "second", ""]


def test_what_is_told_keeps_its_promise() -> None:
    ids = {name: str(uuid.uuid4()) for name in ("disk", "vm", *CHAIN, "s1", "s2")}
    rows = [{k: ids.get(str(v), v) for k, v in row.items()} for row in diagnose(books(), pivoted()).rows]
    assert doctor.VolumeViews(many=True).load(rows)


# -- each difference --------------------------------------------------------------------------------------

DIFFERENCES = {
    "an internal merge": (
        books(),
        merged_inside(),
        ["record_differs", "left_over", "database_has_more", "snapshot_lost"],
    ),
    "a pivot": (
        books(),
        pivoted(),
        ["leaf_differs", "left_over", "database_has_more", "active_differs", "snapshot_lost"],
    ),
    "a new leaf": (books(), grown(), ["database_lacks", "active_differs"]),
    "a volume that waits for its deletion": (
        books(),
        look(volumes=[*_three(), volume("x", "v3")], illegal=("x",)),
        ["left_over"],
    ),
    "a volume that is gone": (
        books(),
        look(without=("v1",), qemu=["v3", "v2"], headers={"v2": None}),
        ["record_differs", "database_has_more", "snapshot_lost"],
    ),
    "a row of a volume that is gone": (books(more={"x": Line("v3", dropped=True)}), look(), ["database_has_more"]),
    "another order in the database": (
        books(("v2", "v1", "v3"), held={}),
        look(),
        ["order_differs"],
    ),
    "rows that form no chain": (
        dataclasses.replace(books(), volumes={"v3": Line("lost")}),
        look(),
        ["rows_broken"],
    ),
    "a snapshot that names the active volume": (
        books(held={"v3": Holder("s3", "")}),
        look(),
        ["snapshot_lost"],
    ),
}


@pytest.mark.parametrize(("known", "facts", "expected"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_difference_has_its_name_and_its_action(known: Books, facts: DiskFacts, expected: list[str]) -> None:
    found = diagnose(known, facts)
    assert codes(found) == expected
    assert all(one.message.endswith(".") and one.action for one in found.differences)
    assert found.plan is not None


BLOCKED = {
    "a job of ours": (books(busy="job-7"), look(), "busy", "drystone job wait job-7"),
    "QEMU and libvirt differ": (books(), look(unsure="they differ"), "unsure", "look again"),
    "a mute monitor": (books(), look(state="unreachable"), "unsure", "Do not stop the VM"),
    "a job of others": (books(), look(job=job(ACTIVE)), "foreign_job", "end it"),
    "a mirror of others": (books(), look(mirror=True), "foreign_job", "end it"),
    "a pause of an unfinished pivot": (books(), look(paused_by_pivot=True), "foreign_job", "end it"),
    "a foreign leaf": (books(), look(qemu=[None, "v3", "v2", "v1"]), "foreign_file_in_use", "--active --pivot"),
    "a foreign layer": (books(), look(qemu=["v3", None, "v1"]), "foreign_file_in_use", "virsh blockcommit"),
    "a running VM without the disk": (books(), look(qemu=[]), "not_plugged", "unplug"),
    "a header that QEMU does not follow": (books(), look(headers={"v3": "v1"}), "header_differs", "a person"),
    "a volume in use that is marked": (books(), look(illegal=("v2",)), "illegal_in_use", "a person"),
    "a broken chain": (books(), look(gone=True, leaf=None, problem="Two leaves."), "chain_broken", "a person"),
}


@pytest.mark.parametrize(("known", "facts", "code", "helps"), BLOCKED.values(), ids=BLOCKED)
def test_nothing_is_planned_while_the_truth_is_not_known(known: Books, facts: DiskFacts, code: str, helps: str) -> None:
    found = diagnose(known, facts)
    assert found.plan is None
    assert found.blocked is not None
    assert found.blocked.code == code
    assert helps in found.blocked.action


def test_a_foreign_file_that_qemu_writes_to_is_named_with_its_path() -> None:
    found = diagnose(books(), look(qemu=[None, "v3", "v2", "v1"]))
    assert found.rows[-1]["path"] == "/images/None"
    assert "virsh blockcommit vm /images/None --active --pivot" in found.differences[0].action


def test_nobody_who_could_look_is_a_difference_with_the_reason() -> None:
    found = diagnose(books(), None, errors.HostNotUp(host_id="h1", state="silent"))
    assert (codes(found), found.plan) == (["not_seen"], None)
    assert "The host h1 is silent" in found.differences[0].message


def test_two_leaves_are_no_riddle_while_a_qemu_writes_to_one() -> None:
    facts = look(volumes=[*_three(), volume("x", "v2")], leaf=None, problem="the marks name 2 leaves: v3, x")
    assert planned(books(more={"x": Line("v2")}), facts).unused == ("x",)


# -- the plan ---------------------------------------------------------------------------------------------


def test_an_internal_merge_is_followed_and_its_snapshot_is_given_up() -> None:
    plan = planned(books(), merged_inside())
    assert (plan.truth, plan.unused, plan.records, plan.drop) == (("v1", "v3"), ("v2",), True, ("v2",))
    assert plan.lost == ("v2",)
    assert plan.mixed == ("v1",)
    assert "snapshot 'first' (s1) can only be removed" in " ".join(plan.changes)


def test_a_pivot_is_followed_and_the_old_leaf_is_marked() -> None:
    plan = planned(books(), pivoted())
    assert (plan.truth, plan.unused, plan.drop, plan.lost, plan.mixed) == (("v1", "v2"), ("v3",), ("v3",), ("v2",), ())
    assert plan.storage


def test_the_last_disk_of_a_snapshot_takes_it_along_and_the_plan_says_so() -> None:
    assert "It held nothing else and is forgotten" in " ".join(planned(books(), pivoted()).changes)
    two = {**HELD, "v2": Holder("s2", "second", disks=2)}
    assert "It keeps its other disks" in " ".join(planned(books(held=two), pivoted()).changes)


def test_a_volume_from_elsewhere_has_to_be_named_and_what_it_stands_on_gets_a_snapshot() -> None:
    plan = planned(books(), grown())
    assert (plan.adopt, plan.found, plan.storage) == (("v4",), ("v3",), False)
    assert planned(books(vm_id=None), grown()).found == ()


def test_an_unknown_volume_in_no_chain_has_to_be_named() -> None:
    facts = look(volumes=[*_three(), volume("x", "v1")])
    assert planned(books(), facts).discard == ("x",)


def test_metadata_alone_are_repaired_without_touching_the_database() -> None:
    rows = [volume("v1", None), volume("v2", "v1"), volume("v3", "v2", parent_id="v1")]
    plan = planned(books(), look(volumes=rows))
    assert (plan.storage, plan.rows, plan.unused, len(plan.changes)) == (True, False, (), 1)


def test_rows_of_volumes_that_are_gone_are_forgotten() -> None:
    assert planned(books(more={"x": Line("v3", dropped=True)}), look()).forget == ("x",)


def from_template(*, known: bool = False, **more: Any) -> tuple[Books, DiskFacts]:
    rows = [volume("t", None, volume_type="shared"), volume("v1", "t"), volume("v2", "v1")]
    facts = look(**{"volumes": rows, "qemu": ["v2", "v1", "t"], "leaf": "v2", **more})
    return books(("t", "v1", "v2") if known else ("v1", "v2")), facts


@pytest.mark.parametrize("known", [True, False])
def test_the_volume_of_a_template_is_not_the_disks_own(known: bool) -> None:
    found = diagnose(*from_template(known=known))
    assert (codes(found), found.plan and found.plan.changes) == ([], ())


def test_a_repair_on_a_template_names_the_whole_chain_to_the_host() -> None:
    plan = planned(*from_template(qemu=["v1", "t"]))
    assert (plan.template, plan.truth, plan.unused, plan.adopt) == (("t",), ("v1",), ("v2",), ())


def test_without_a_qemu_a_merge_that_was_not_recorded_is_put_back() -> None:
    rows = [volume("v1", None), volume("v2", "v1"), volume("v3", "v2", backing_id="v1")]
    found = diagnose(books(), look(volumes=rows, gone=True))
    assert codes(found) == ["not_recorded"]
    assert found.plan is not None
    assert (found.plan.truth, found.plan.storage, found.plan.rows, found.plan.lost) == (CHAIN, True, False, ())
    assert found.plan.changes == ("Storage: the header of volume v3 names v2 again.",)


def test_without_a_qemu_a_pull_that_was_not_recorded_is_put_back() -> None:
    rows = [volume("v1", None), volume("v2", "v1"), volume("v3", "v2", backing_id=None)]
    found = diagnose(books(), look(volumes=rows, gone=True))
    assert codes(found) == ["not_recorded"]
    assert "stands on nothing" in found.differences[0].message
    assert found.plan is not None
    assert found.plan.changes == ("Storage: the header of volume v3 names v2 again.",)


@pytest.mark.parametrize("illegal", [("v2",), ()])
def test_one_whose_top_is_marked_or_gone_is_not(illegal: tuple[str, ...]) -> None:
    rows = [volume("v1", None), volume("v2", "v1"), volume("v3", "v2", backing_id="v1")]
    without = () if illegal else ("v2",)
    found = diagnose(books(), look(volumes=rows, gone=True, illegal=illegal, without=without))
    assert codes(found)[0] == "record_differs"
    assert found.plan is not None
    assert found.plan.truth == ("v1", "v3")


# -- the digest -------------------------------------------------------------------------------------------


def test_the_digest_stays_while_only_sizes_change() -> None:
    rows = [volume("v1", None), volume("v2", "v1"), volume("v3", "v2", actual_size=7)]
    assert diagnose(books(), look()).digest == diagnose(books(), look(volumes=rows)).digest


@pytest.mark.parametrize(
    ("known", "facts"),
    [
        (books(), pivoted()),
        (books(busy="j"), look()),
        (books(held={}), look()),
        (books(vm_id=None), look()),
        (books(), look(gone=True)),
    ],
)
def test_the_digest_changes_with_everything_else(known: Books, facts: DiskFacts) -> None:
    assert diagnose(known, facts).digest != diagnose(books(), look()).digest
