"""What is planned, and what is refused with which words."""

from __future__ import annotations

import dataclasses

import pytest

from contracts import errors
from services.snapshots import chain, create, facts, leaves
from services.snapshots.facts import DiskFacts
from services.snapshots.leaves import Left
from services.snapshots.plan import MergePlan
from tests.unit.snapshots.looks import ACTIVE, CHAIN, GIB, INTERNAL, job, look, volume


def plan(base_id: str, facts: DiskFacts) -> MergePlan:
    return chain.plan_merge("vm", CHAIN, [base_id], facts)


def test_a_snapshot_in_the_middle_is_an_internal_merge() -> None:
    made = plan("v1", look())
    assert (made.kind, made.base_id, made.top_id, made.child_id) == ("internal", "v1", "v2", "v3")


def test_the_newest_snapshot_is_an_active_merge() -> None:
    made = plan("v2", look())
    assert (made.kind, made.base_id, made.top_id, made.child_id) == ("active", "v2", "v3", None)


def test_space_is_estimated_from_what_the_volumes_take() -> None:
    rows = [volume("v1", None, actual_size=8 * GIB), volume("v2", "v1", actual_size=5 * GIB), volume("v3", "v2")]
    made = plan("v1", look(volumes=rows))
    assert (made.copy, made.needs, made.returns) == (5 * GIB, 2 * GIB, 3 * GIB)


def test_a_running_job_of_the_same_volumes_is_adopted() -> None:
    assert plan("v1", look(job=job(INTERNAL, 5))).top_id == "v2"


REFUSED = {
    "a job of others": (look(job=job(ACTIVE)), errors.ForeignJob),
    "a job that only libvirt shows": (look(libvirt_job=job(ACTIVE)), errors.ForeignJob),
    "QEMU and libvirt differ": (look(unsure="they differ"), errors.VmUnsure),
    "a mute monitor": (look(state="unreachable"), errors.VmUnsure),
    "stale XML": (look(libvirt=["v2", "v1"]), errors.VmUnsure),
    "no leaf on the storage": (look(leaf=None, problem="two leaves"), errors.ChainBroken),
    "metadata and header differ": (look(headers={"v2": None}), errors.ChainDiffers),
    "the database has more than the storage": (look(without=("v1",)), errors.ChainDiffers),
    "QEMU runs another chain": (look(qemu=["v3", "v1"]), errors.ChainDiffers),
    "QEMU uses a foreign file": (look(qemu=["v3", None, "v1"]), errors.ChainDiffers),
    "another child of base": (
        look(volumes=[volume("v1", None), volume("v2", "v1"), volume("v3", "v2"), volume("x", "v1")]),
        errors.VolumeInUse,
    ),
    "another child of top, by its header only": (
        look(volumes=[volume("v1", None), volume("v2", "v1"), volume("v3", "v2"), volume("x", None, backing_id="v2")]),
        errors.VolumeInUse,
    ),
    "base is a template's": (
        look(volumes=[volume("v1", None, volume_type="shared"), volume("v2", "v1"), volume("v3", "v2")]),
        errors.TemplateVolume,
    ),
}


def a_thin_disk() -> DiskFacts:
    """The chain stands on a template's volume, which QEMU, libvirt and the storage show like any other."""
    ids = ["v3", "v2", "v1", "base"]
    rows = [
        {**vars(volume(id_, parent)), "volume_type": "shared" if id_ == "base" else "internal"}
        for id_, parent in zip(ids, [*ids[1:], None], strict=True)
    ]
    rows[-1]["template_disk_id"] = "template"
    bare = {"job": None, "chain": ids, "state": "running"}
    return facts.read(
        {
            "vm_id": "vm",
            "disk_id": "disk",
            "qemu": {**bare, "paths": [f"/images/{id_}" for id_ in ids]},
            "libvirt": {**bare, "mirror": False, "mirror_ready": False},
            "storage": {"volumes": rows, "leaf": "v3", "problem": None, "free": 100 * GIB},
            "unsure": None,
            "paused_by_pivot": False,
        }
    )


def test_a_thin_disks_chain_ends_above_its_template() -> None:
    seen = a_thin_disk()
    assert seen.storage.chain() == ("v1", "v2", "v3")
    assert (seen.qemu.chain, seen.libvirt.chain) == (("v3", "v2", "v1"), ("v3", "v2", "v1"))
    assert seen.qemu.paths[-1] == "/images/v1"
    assert plan("v1", seen).top_id == "v2"
    assert plan("v2", seen).child_id is None


def test_a_merge_into_a_template_names_it() -> None:
    with pytest.raises(errors.TemplateVolume, match=r"volume base of the template disk template.*Nothing was touched"):
        plan("base", a_thin_disk())


@pytest.mark.parametrize(("facts", "error"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(facts: DiskFacts, error: type[errors.Problem]) -> None:
    with pytest.raises(error) as caught:
        plan("v1", facts)
    assert "?" not in str(caught.value)


def test_a_branch_is_named_with_what_to_do_about_it() -> None:
    rows = [volume("v1", None), volume("v2", "v1"), volume("v3", "v2"), volume("x", "v1")]
    with pytest.raises(errors.VolumeInUse) as caught:
        plan("v1", look(volumes=rows))
    told = errors.from_wire(caught.value.to_wire())
    assert all(word in told.advice for word in ("whole copy", "remove it", "drystone doctor disk disk "))
    assert "moved first" in errors.VolumeInUse(volume_id="v", by="a file").advice


def test_libvirt_away_is_told_as_that() -> None:
    facts = look()
    away = dataclasses.replace(facts, libvirt=dataclasses.replace(facts.libvirt, state="away", chain=()))
    with pytest.raises(errors.HypervisorAway):
        plan("v1", away)


def test_metadata_that_contradict_the_header_are_refused() -> None:
    rows = [volume("v1", None), volume("v2", "v1", parent_id=None), volume("v3", "v2")]
    with pytest.raises(errors.ChainBroken, match="v2 has the parent None but the backing file v1"):
        plan("v1", look(volumes=rows))


def test_the_active_volume_is_no_snapshot() -> None:
    with pytest.raises(errors.ChainDiffers, match="the active one"):
        plan("v3", look())


# -- space ------------------------------------------------------------------------------------------------


def test_a_merge_that_fits_above_the_reserve_is_let_through() -> None:
    chain.room(INTERNAL, "domain", free=3 * GIB, promised=GIB, reserve=GIB)


@pytest.mark.parametrize(("free", "promised", "reserve"), [(GIB, 0, 1), (2 * GIB, GIB + 1, 0), (0, 5, 5)])
def test_a_merge_that_does_not_fit_is_refused(free: int, promised: int, reserve: int) -> None:
    with pytest.raises(errors.NoSpace) as caught:
        chain.room(INTERNAL, "domain", free, promised, reserve)
    assert caught.value.fields["needs"] == GIB


RATE = GIB // 10
FILLING = {
    "plenty": (look(free=10 * GIB, job=job(INTERNAL)), False),
    "the reserve would be touched before the next look": (look(free=GIB + RATE, job=job(INTERNAL)), True),
    "little is left to copy": (look(free=GIB + 10, job=job(INTERNAL, GIB - 5)), False),
    "the reserve is touched": (look(free=GIB - 1, job=job(INTERNAL)), True),
    "no job": (look(free=0), False),
    "everything is copied": (look(free=0, job=job(INTERNAL, GIB, ready=True)), False),
}


@pytest.mark.parametrize(("facts", "stop"), FILLING.values(), ids=FILLING)
def test_the_copy_stops_before_the_reserve_is_touched(facts: DiskFacts, stop: bool) -> None:
    assert (chain.filling(INTERNAL, "domain", facts, RATE, GIB) is not None) is stop


def test_a_merge_that_makes_nothing_grow_runs_on_a_full_disk() -> None:
    none = dataclasses.replace(INTERNAL, needs=0)
    assert chain.filling(none, "domain", look(free=0, job=job(none)), RATE, GIB) is None


# -- chains of the database -------------------------------------------------------------------------------


def test_rows_are_put_in_order() -> None:
    assert chain.order({"c": "b", "a": None, "b": "a"}, "c") == ("a", "b", "c")


@pytest.mark.parametrize("parents", [{"a": "b", "b": "a"}, {"a": "gone"}, {}])
def test_rows_that_form_no_chain_are_a_fault(parents: dict[str, str | None]) -> None:
    with pytest.raises(ValueError, match="missing or twice"):
        chain.order(parents, "a")


# -- new snapshots ----------------------------------------------------------------------------------------

LEAF = leaves.Leaf("disk", "v3", "v2")
SWITCHED = {
    "done": (look(), chain.Do.GO_ON, Left.LEAF),
    "done, VM down": (look(gone=True), chain.Do.GO_ON, Left.LEAF),
    "nothing happened": (look(without=("v3",), qemu=["v2", "v1"], leaf="v2"), chain.Do.ASK, Left.NOTHING),
    "made, QEMU did not switch": (look(qemu=["v2", "v1"]), chain.Do.ASK, Left.UNUSED),
    "libvirt is late": (look(libvirt=["v2", "v1"]), chain.Do.UNKNOWN, Left.LEAF),
    "the storage names another leaf": (look(leaf="v2", illegal=("v3",)), chain.Do.ASK, Left.LEAF),
    "QEMU runs something else": (look(qemu=["x"]), chain.Do.ASK, Left.LEAF),
    "its deletion began, VM down": (look(gone=True, leaf="v2", illegal=("v3",)), chain.Do.ASK, Left.UNUSED),
}


@pytest.mark.parametrize(("facts", "do", "left"), SWITCHED.values(), ids=SWITCHED)
def test_a_new_leaf(facts: DiskFacts, do: chain.Do, left: Left) -> None:
    assert leaves.switched(LEAF, facts).do is do
    assert leaves.left(LEAF, facts) is left


def test_a_new_leaf_is_unknown_while_nobody_can_say() -> None:
    assert leaves.switched(LEAF, look(state="unreachable")).do is chain.Do.UNKNOWN


@pytest.mark.parametrize("state", ["creating", "locked", "deleting", "failed"])
def test_a_disk_that_is_being_made_or_copied_gets_no_snapshot(state: str) -> None:
    with pytest.raises(errors.DiskWrongState, match=f"is {state}; taking a snapshot needs it ok"):
        create.refuse_unready({"id": "disk", "state": state}, create.ACTION)
    create.refuse_unready({"id": "disk", "state": "ok"}, create.ACTION)


def test_a_vm_that_is_down_is_planned_as_one_that_runs() -> None:
    assert plan("v1", look(gone=True)) == plan("v1", look())


def test_a_merge_that_the_agent_has_under_way_is_nobody_elses() -> None:
    with pytest.raises(errors.ForeignJob):
        plan("v1", look(gone=True, offline=job(ACTIVE, 5)))
