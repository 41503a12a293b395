"""What is decided in each phase of a merge, as tables of looks."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import errors
from services.snapshots import chain
from services.snapshots.chain import GAP, Do
from services.snapshots.facts import DiskFacts, Volume
from services.snapshots.plan import MergePlan
from tests.unit.snapshots.looks import ACTIVE, GIB, INTERNAL, job, look, volume

LEFT: dict[str, Any] = {"headers": {"v3": "v1"}, "qemu": ["v3", "v1"]}
MERGED: dict[str, Any] = {**LEFT, "illegal": ("v2",)}
PIVOTED: dict[str, Any] = {"qemu": ["v2", "v1"], "leaf": "v2"}

COMMIT_INTERNAL = {
    "nothing runs: ask": (look(), False, Do.ASK),
    "the job runs": (look(job=job(INTERNAL, 5)), False, Do.WAIT),
    "a job of other volumes": (look(job=job(ACTIVE, 5)), False, Do.GIVE_UP),
    "a job that names nothing is foreign before we asked": (
        look(job=job(INTERNAL, base_id=None, top_id=None)),
        False,
        Do.GIVE_UP,
    ),
    "a job that names nothing is ours after we asked": (
        look(job=job(INTERNAL, base_id=None, top_id=None)),
        True,
        Do.WAIT,
    ),
    "a job that vanished with top still there has failed": (look(), True, Do.GIVE_UP),
    "everything copied, but the job is still there": (look(job=job(INTERNAL, GIB)), True, Do.WAIT),
    "QEMU left top, and the agent has to record it": (look(**LEFT), True, Do.ASK),
    "the same before we ever looked": (look(**LEFT), False, Do.ASK),
    "the record was begun": (look(**MERGED), True, Do.GO_ON),
    "recorded, and top is gone": (look(**LEFT, without=("v2",)), True, Do.GO_ON),
    "done before we ever looked": (look(**MERGED), False, Do.GO_ON),
    "libvirt's XML is late": (look(**MERGED, libvirt=["v3", "v2", "v1"]), True, Do.UNKNOWN),
    "QEMU left top, the header does not say so": (look(qemu=["v3", "v1"]), False, Do.UNKNOWN),
    "the header is ahead of QEMU's graph": (look(headers={"v3": "v1"}, job=job(INTERNAL, GIB)), True, Do.WAIT),
    "libvirt still shows a job that QEMU has not": (look(libvirt_job=job(INTERNAL)), True, Do.UNKNOWN),
    "QEMU and libvirt differ": (look(unsure="shut off, but QEMU lives"), True, Do.UNKNOWN),
    "the monitor is mute": (look(state="unreachable"), True, Do.UNKNOWN),
    "the VM stopped before it was done: offline": (look(gone=True), True, Do.ASK),
    "the VM stopped after QEMU wrote the header, which proves nothing": (
        look(gone=True, headers={"v3": "v1"}),
        True,
        Do.ASK,
    ),
    "the agent merges": (look(gone=True, offline=job(INTERNAL, 5)), False, Do.WAIT),
    "the agent merges something else": (look(gone=True, offline=job(ACTIVE, 5)), False, Do.GIVE_UP),
    "the VM stopped after the record": (look(gone=True, headers={"v3": "v1"}, illegal=("v2",)), True, Do.GO_ON),
    "the guest is paused": (look(state="paused", job=job(INTERNAL, 5)), True, Do.WAIT),
}


@pytest.mark.parametrize(("facts", "started", "do"), COMMIT_INTERNAL.values(), ids=COMMIT_INTERNAL)
def test_an_internal_commit(facts: DiskFacts, started: bool, do: Do) -> None:
    assert chain.commit(INTERNAL, facts, started).do is do


PULLED_ROWS = [volume("v1", None), volume("v2", "v1", legality="illegal"), volume("v3", "v1")]
COMMIT_ACTIVE = {
    "nothing runs: ask": (look(), False, Do.ASK),
    "cur == end == 0 right after the start is not ready": (look(job=job(ACTIVE, 0, 0)), True, Do.WAIT),
    "cur == end == 0 with a mirror that is not ready": (look(job=job(ACTIVE, 0, 0), mirror=True), True, Do.WAIT),
    "cur == end without a ready mirror is not ready": (
        look(job=job(ACTIVE, GIB, ready=True), mirror=True),
        True,
        Do.WAIT,
    ),
    "a ready mirror of libvirt without QEMU's word": (
        look(job=job(ACTIVE, GIB), mirror=True, mirror_ready=True),
        True,
        Do.WAIT,
    ),
    "ready": (look(job=job(ACTIVE, GIB, ready=True), mirror=True, mirror_ready=True), True, Do.GO_ON),
    "ready with nothing to copy": (
        look(job=job(ACTIVE, 0, 0, ready=True), mirror=True, mirror_ready=True),
        True,
        Do.GO_ON,
    ),
    "ready while the guest writes": (
        look(job=job(ACTIVE, GIB - GAP, ready=True), mirror=True, mirror_ready=True),
        True,
        Do.GO_ON,
    ),
    "ready, but the guest is far ahead": (
        look(job=job(ACTIVE, GIB - GAP - 1, ready=True), mirror=True, mirror_ready=True),
        True,
        Do.WAIT,
    ),
    "QEMU writes to base already": (look(**PIVOTED), True, Do.GO_ON),
    "the job vanished": (look(), True, Do.GIVE_UP),
    "the job vanished, its mirror is still in the XML": (look(mirror=True), True, Do.UNKNOWN),
    "the VM stopped: offline": (look(gone=True), True, Do.ASK),
    "the agent merges": (look(gone=True, offline=job(ACTIVE, 5)), True, Do.WAIT),
    "the VM stopped after the mark": (look(gone=True, leaf="v2", illegal=("v3",)), True, Do.GO_ON),
}


@pytest.mark.parametrize(("facts", "started", "do"), COMMIT_ACTIVE.values(), ids=COMMIT_ACTIVE)
def test_an_active_commit(facts: DiskFacts, started: bool, do: Do) -> None:
    assert chain.commit(ACTIVE, facts, started).do is do


PULL = MergePlan("vm", "disk", "v2", "v3", None, copy=GIB, needs=GIB, pull=True, below_id="v1")
PULLED: dict[str, Any] = {"qemu": ["v3", "v1"], "headers": {"v3": "v1"}}
COMMIT_PULL = {
    "nothing runs: ask": (look(), False, Do.ASK),
    "it runs": (look(job=job(PULL, 5, type="pull")), True, Do.WAIT),
    "a job of ours is adopted": (look(job=job(PULL, 5, type="pull")), False, Do.WAIT),
    "a commit of the same two": (look(job=job(PULL, 5)), True, Do.GIVE_UP),
    "a QEMU came up beside the agent's pull": (
        look(state="paused", offline=job(PULL, 5, type="offline_pull")),
        False,
        Do.UNKNOWN,
    ),
    "the agent pulls": (look(gone=True, offline=job(PULL, 5, type="offline_pull")), False, Do.WAIT),
    "the agent commits the same two": (look(gone=True, offline=job(PULL, 5, type="offline")), False, Do.GIVE_UP),
    "a pull of another one": (look(job=job(PULL, 5, type="pull", base_id="v1")), True, Do.GIVE_UP),
    "QEMU left base: ask once more, for the record": (look(**PULLED), True, Do.ASK),
    "QEMU left base, the header does not say so": (look(qemu=["v3", "v1"]), False, Do.UNKNOWN),
    "the record was begun": (look(**PULLED, illegal=("v2",)), True, Do.GO_ON),
    "recorded": (look(qemu=["v3", "v1"], volumes=PULLED_ROWS), True, Do.GO_ON),
    "recorded, libvirt's XML is late": (
        look(qemu=["v3", "v1"], volumes=PULLED_ROWS, libvirt=["v3", "v2", "v1"]),
        True,
        Do.UNKNOWN,
    ),
    "the job vanished": (look(), True, Do.GIVE_UP),
    "the VM stopped: ask, to go on offline": (look(gone=True), True, Do.ASK),
    "the VM stopped and only the header says so": (look(gone=True, headers={"v3": "v1"}), True, Do.ASK),
    "the VM stopped after the record was begun": (
        look(gone=True, headers={"v3": "v1"}, illegal=("v2",)),
        True,
        Do.GO_ON,
    ),
    "libvirt lost the VM": (look(**PULLED, unsure="libvirt does not know the domain"), True, Do.UNKNOWN),
}


@pytest.mark.parametrize(("facts", "started", "do"), COMMIT_PULL.values(), ids=COMMIT_PULL)
def test_a_pull(facts: DiskFacts, started: bool, do: Do) -> None:
    assert chain.commit(PULL, facts, started).do is do
    assert chain.pivot(PULL, facts).do is Do.GO_ON


def test_a_pull_of_the_bottom_leaves_a_volume_that_stands_on_nothing() -> None:
    plan = MergePlan("vm", "disk", "v1", "v3", None, between=("v2",), pull=True)
    assert chain.commit(plan, look(qemu=["v3"], headers={"v3": None}), started=True).do is Do.ASK
    done = look(qemu=["v3"], volumes=[volume("v3", None)])
    assert chain.commit(plan, done, started=True).do is Do.GO_ON
    assert chain.recorded(plan, done).do is Do.GO_ON


RECORDED_PULL = {
    "done": (look(qemu=["v3", "v1"], volumes=PULLED_ROWS), Do.GO_ON),
    "base is gone already": (look(qemu=["v3", "v1"], volumes=PULLED_ROWS, without=("v2",)), Do.GO_ON),
    "base is not marked": (look(**PULLED), Do.UNKNOWN),
    "top's record is missing": (look(**PULLED, illegal=("v2",)), Do.UNKNOWN),
    "another leaf": (look(qemu=["v3", "v1"], volumes=PULLED_ROWS, leaf="v1"), Do.UNKNOWN),
}


@pytest.mark.parametrize(("facts", "do"), RECORDED_PULL.values(), ids=RECORDED_PULL)
def test_the_record_of_a_pull_is_verified(facts: DiskFacts, do: Do) -> None:
    assert chain.recorded(PULL, facts).do is do


PIVOT = {
    "ready: ask": (look(job=job(ACTIVE, GIB, ready=True), mirror=True, mirror_ready=True), Do.ASK),
    "the mirror vanished": (look(), Do.GIVE_UP),
    "QEMU writes to base, top is not marked": (look(**PIVOTED), Do.ASK),
    "marked, but the agent still holds the guest": (
        look(**PIVOTED, illegal=("v3",), paused_by_pivot=True),
        Do.ASK,
    ),
    "marked, libvirt's XML names the old top": (
        look(**PIVOTED, illegal=("v3",), libvirt=["v3", "v2", "v1"]),
        Do.UNKNOWN,
    ),
    "marked, libvirt still has the mirror": (look(**PIVOTED, illegal=("v3",), mirror=True), Do.UNKNOWN),
    "done": (look(**PIVOTED, illegal=("v3",)), Do.GO_ON),
    "done, and top is gone": (look(**PIVOTED, without=("v3",)), Do.GO_ON),
    "libvirt lost the VM": (look(**PIVOTED, unsure="libvirt does not know the domain"), Do.UNKNOWN),
    "QEMU writes to something else": (look(qemu=["v9"]), Do.UNKNOWN),
    "the VM stopped before the mark: top counts, offline": (look(gone=True), Do.ASK),
    "the agent merges": (look(gone=True, offline=job(ACTIVE, 5)), Do.WAIT),
    "the VM stopped after the mark: base counts": (look(gone=True, leaf="v2", illegal=("v3",)), Do.GO_ON),
}


@pytest.mark.parametrize(("facts", "do"), PIVOT.values(), ids=PIVOT)
def test_a_pivot(facts: DiskFacts, do: Do) -> None:
    assert chain.pivot(ACTIVE, facts).do is do


def test_an_internal_merge_has_no_pivot() -> None:
    assert chain.pivot(INTERNAL, look()).do is Do.GO_ON


MOVED = {
    "pull: only the header says so": (PULL, look(**PULLED), False),
    "pull: only the header says so, and QEMU is dead": (PULL, look(gone=True, headers={"v3": "v1"}), False),
    "pull: its record was begun": (PULL, look(**PULLED, illegal=("v2",)), True),
    "pull: QEMU still reads base": (PULL, look(headers={"v3": "v1"}, illegal=("v2",)), False),
    "internal: the agent recorded it": (INTERNAL, look(**MERGED), True),
    "internal: only the header says so": (INTERNAL, look(**LEFT), False),
    "internal: only the header says so, and QEMU is dead": (INTERNAL, look(gone=True, headers={"v3": "v1"}), False),
    "internal: QEMU still reads top": (INTERNAL, look(headers={"v3": "v1"}), False),
    "internal: nothing happened": (INTERNAL, look(), False),
    "internal: the child is missing": (INTERNAL, look(without=("v3",), qemu=["v3", "v1"]), False),
    "active: QEMU writes to base": (ACTIVE, look(**PIVOTED), True),
    "active: QEMU writes to top, whatever the mark says": (ACTIVE, look(leaf="v2", illegal=("v3",)), False),
    "active: no QEMU, the mark names base": (ACTIVE, look(gone=True, leaf="v2"), True),
    "active: no QEMU, the mark names top": (ACTIVE, look(gone=True), False),
    "active: the monitor is mute": (ACTIVE, look(state="unreachable", qemu=[], leaf="v2"), False),
}


@pytest.mark.parametrize(("plan", "facts", "moved"), MOVED.values(), ids=MOVED)
def test_the_way_back_is_closed_once_the_image_moved(plan: MergePlan, facts: DiskFacts, moved: bool) -> None:
    assert chain.merged(plan, facts) is moved


def _child(parent: str, backing: str) -> list[Volume]:
    return [volume("v1", None), volume("v2", "v1"), volume("v3", parent, backing_id=backing)]


RECORD = {
    "the child names base twice": (INTERNAL, look(volumes=_child("v1", "v1")), Do.GO_ON),
    "only its header does": (INTERNAL, look(volumes=_child("v2", "v1")), Do.UNKNOWN),
    "only its metadata do": (INTERNAL, look(volumes=_child("v1", "v2")), Do.UNKNOWN),
    "base is missing": (INTERNAL, look(without=("v1",)), Do.UNKNOWN),
    "active: base is the leaf": (ACTIVE, look(leaf="v2", illegal=("v3",)), Do.GO_ON),
    "active: the storage's leaf is still top": (ACTIVE, look(), Do.UNKNOWN),
    "base did not grow": (
        ACTIVE,
        look(leaf="v2", volumes=[volume("v2", None), volume("v3", "v2", capacity=20 * GIB)]),
        Do.UNKNOWN,
    ),
    "QEMU and libvirt differ": (ACTIVE, look(leaf="v2", unsure="they differ"), Do.UNKNOWN),
}


@pytest.mark.parametrize(("plan", "facts", "do"), RECORD.values(), ids=RECORD)
def test_what_was_recorded_is_verified(plan: MergePlan, facts: DiskFacts, do: Do) -> None:
    assert chain.recorded(plan, facts).do is do


def test_a_verdict_says_why() -> None:
    verdict = chain.commit(INTERNAL, look(), started=True)
    assert isinstance(verdict.problem, errors.JobFailed)
    assert "top is still in the chain" in verdict.why


def test_bytes_that_came_back_are_never_negative() -> None:
    assert chain.returned(before=3, now=2) == 1
    assert chain.returned(before=3, now=5) == 0


WHOLE = {
    "nothing was asked": (look(), {}, True),
    "every ask was refused before QEMU was asked": (look(), {"asked": 2, "untouched": 2}, True),
    "an ask was refused otherwise, or its answer is missing": (look(), {"asked": 2, "untouched": 1}, False),
    "a job was begun": (look(), {"asked": 1, "untouched": 1, "started": True}, False),
    "a job was seen, whose ever": (look(), {"seen": True}, False),
    "the VM stopped before it was asked": (look(gone=True), {}, True),
    "somebody works on the chain now": (look(job=job(ACTIVE)), {}, False),
    "the agent works on the chain now": (look(gone=True, offline=job(ACTIVE)), {}, False),
    "libvirt works on the chain": (look(libvirt_job=job(INTERNAL)), {}, False),
    "nobody can say": (look(unsure="they differ"), {}, False),
    "top is not on base any more": (look(headers={"v3": "v1"}), {}, False),
}


@pytest.mark.parametrize(("facts", "kept", "wanted"), WHOLE.values(), ids=WHOLE)
def test_a_snapshot_is_whole_only_while_nothing_can_have_been_copied(
    facts: DiskFacts, kept: dict[str, Any], wanted: bool
) -> None:
    assert chain.whole(INTERNAL, facts, kept) is wanted


def test_a_pull_that_turned_back_has_left_its_snapshot_whole() -> None:
    asked = {"asked": 1, "seen": True, "started": True}
    assert chain.whole(PULL, look(), asked)
    assert not chain.whole(ACTIVE, look(), asked)
    assert not chain.whole(PULL, look(), {**asked, "foreign": True})
    assert not chain.whole(PULL, look(headers={"v3": "v1"}), asked)
    assert not chain.whole(PULL, look(job=job(PULL, 5, type="pull")), asked)
