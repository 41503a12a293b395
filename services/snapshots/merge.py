"""One merge of a disk: top, and what lies between, is merged down into base, under the running VM or, where it is
down, with qemu-img; or these go up into top, where that copies far less. The flow, read from the top.

What is believed: QEMU, then the storage, then libvirt, then our database; the decisions are in chain.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from sqlalchemy.orm import Session

from chassis import logs
from chassis.steps import DONE, STUCK, UNDONE, Failed, Flow, FlowKind, FlowRow, GoOn, Look, Step, Unknown
from contracts import errors, hostagent
from services.snapshots import (
    chain,
    direction,
    jobs,
    merge_asks,
    peers,
    removal,
    store,
    store_jobs,
    store_removals,
    store_seen,
    watch,
)
from services.snapshots.chain import Do, Verdict
from services.snapshots.desk import Desk
from services.snapshots.facts import DiskFacts, Job
from services.snapshots.plan import MergePlan
from services.snapshots.store_jobs import MergeRow

NAME = "merge"
PIVOTS = 3  # refused pivots before the merge is cancelled
HELD_SECONDS = 3.0  # between two asks for a lease that is held: another disk of the VM is merged perhaps, for an hour
_log = logs.get("snapshots")


class Merge:
    """Steps of the flow; every one looks first, then asks once, last."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def kind(self) -> FlowKind:
        steps = (
            Step("plan", self.planned, self.plan),
            Step("extend", self.extended, self.extend),
            Step("commit", self.committed, self.commit, undo=self.cancel, patience=1.0),
            Step("pivot", self.pivoted, self.pivot, undo=self.stay, no_way_back=True),
            Step("record", self.recorded, self.record),
            Step("discard", self.discarded, self.discard, tries=8),
        )
        return FlowKind(NAME, steps, self.moved)

    # -- plan: the plan is in the database, and S is not restorable any more ------------------------------

    def planned(self, flow: Flow) -> Look:
        return _settled(row_of(self.desk, flow).planned)

    def plan(self, flow: Flow) -> None:
        row, facts = self._look(flow)
        with self.desk.db.read() as session:
            known = store.chain_of(session, row.disk_id)
            marked = store_removals.restorable_of(session, flow.id)
        with peers.patient():
            plan = chain.plan_merge(row.vm_id, known, row.plan.removed, facts)
        plan = direction.cheaper(plan, known, facts, self.desk.settings.policy())
        flow.save(marked=marked)  # who takes restorability away may give it back, where nothing came of the merge
        with flow.write() as session:
            store_jobs.shut_gate(session)  # no two promise the same space
            _find_room(session, plan, row, facts.storage.free)
            keep_plan(session, flow.id, plan, facts)

    # -- extend: base is large enough ---------------------------------------------------------------------

    def extended(self, flow: Flow) -> Look:
        """A job on files grows what stays by itself, QEMU's as well as qemu-img's (a running `qemu-img resize` would be
        refused by QEMU's lock), and `record` checks it. Block storage will ask here."""
        return Look.SETTLED

    def extend(self, flow: Flow) -> None:
        raise Failed(errors.InternalError(correlation_id=flow.id))  # nothing leads here yet

    # -- commit (or pull): everything is in what stays, but for what the guest writes now -----------------

    def committed(self, flow: Flow) -> Look:
        row, facts = self._look(flow)
        started = bool(flow.data.get("started"))
        verdict = chain.commit(row.plan, facts, started)
        job = facts.job
        watch.worker(flow, row, job)
        if verdict.do in (Do.WAIT, Do.GO_ON) and job is not None:
            if not started and facts.qemu.job is not None:  # adopted: from now on a job that is gone has failed
                flow.save(started=True)
            watch.space(self.desk, flow, row, facts)
            if facts.qemu.job is not None:
                watch.speed(self.desk, flow, row, job.left)
            self._progress(flow, job, force=verdict.do is Do.GO_ON)
        return _look_of(row, verdict) if verdict.do is not Do.ASK else _look_to_ask(self.desk, flow, facts)

    def commit(self, flow: Flow) -> None:
        row, facts = self._look(flow)
        _sure(row, facts)
        row = turned(self.desk, flow, row, facts)
        if facts.qemu.state == "absent":
            ask_offline(self.desk, flow, row)
            return
        request = {**merge_asks.merge(flow, row), "bandwidth": row.bandwidth}
        with watch.counted(flow), peers.patient(peers.TURNED):
            self.desk.peers.ask(row.host_id, merge_asks.start(row), request)
        flow.save(started=True, offline=False)

    def cancel(self, flow: Flow) -> Look | None:
        """Undo: no job of ours runs and the image is where it was; or it has moved already, then only forward."""
        row, facts = self._look(flow)
        _refuse_to_turn(row, facts)
        # asked without a job too: an ask of ours whose answer was lost may be about to begin one; a cancel ends that
        try:
            with peers.patient():
                self.desk.peers.ask(row.host_id, hostagent.cancel_job, merge_asks.cancel(flow, row))
        except errors.ForeignJob:
            return None  # no job of ours runs, and none will begin: the agent refuses late asks before it looks
        row, facts = self._look(flow)  # whether it was in time, QEMU knows
        _refuse_to_turn(row, facts)
        if facts.job is not None:
            return Look.RUNNING
        flow.save(whole=chain.whole(row.plan, facts, flow.data))
        return None

    # -- pivot: QEMU writes to base, libvirt knows, and top is marked illegal; from here only forward -----

    def pivoted(self, flow: Flow) -> Look:
        row = row_of(self.desk, flow)
        if not row.plan.active:
            return Look.SETTLED
        row, facts = self._look(flow)
        if facts.offline is not None:
            watch.space(self.desk, flow, row, facts)
            self._progress(flow, facts.offline, force=False)
        verdict = chain.pivot(row.plan, facts)
        if facts.qemu.state == "absent" and verdict.do in (Do.WAIT, Do.ASK) and flow.row.cancel_by is not None:
            # it may be turned back: no pivot is under way, and what is done when the copy is cancelled is seen then
            raise Failed(errors.Cancelled(user=flow.row.cancel_by))
        return _look_of(row, verdict) if verdict.do is not Do.ASK else _look_to_ask(self.desk, flow, facts)

    def pivot(self, flow: Flow) -> None:
        row, facts = self._look(flow)
        if facts.qemu.state == "absent":  # it stopped before the pivot: what the mirror lacked is on top
            ask_offline(self.desk, flow, row)
            return
        try:
            with peers.patient(peers.TURNED):
                told = self.desk.peers.ask(row.host_id, hostagent.pivot, merge_asks.merge(flow, row))
        except errors.PivotFailed:
            refused = int(flow.data.get("refused") or 0) + 1
            flow.save(refused=refused)
            if refused >= PIVOTS:
                raise
            return
        with flow.write() as session:
            keep_stall(session, row, told)

    def stay(self, flow: Flow) -> Look | None:
        """Undo: a failed pivot has nothing to undo, but never leave while the agent holds the guest."""
        row, facts = self._look(flow)
        _refuse_to_turn(row, facts)
        return Look.RUNNING if facts.paused_by_pivot else None  # an offline copy is the commit's to cancel

    # -- record: the storage's metadata, then our database, agree with the chain as it is now -------------

    def recorded(self, flow: Flow) -> Look:
        return _settled(row_of(self.desk, flow).recorded)

    def record(self, flow: Flow) -> None:
        row = row_of(self.desk, flow)
        record = hostagent.record_pull if row.pull else hostagent.record_merge
        with peers.patient():
            self.desk.peers.ask(row.host_id, record, merge_asks.merge(flow, row))
        row, facts = self._look(flow)
        _look_of(row, chain.recorded(row.plan, facts))
        with flow.write() as session:
            if not store_jobs.merge(session, flow.id).recorded:
                store.record_merge(session, row.plan)
                store_jobs.change_merge(session, flow.id, recorded=True)
                store_seen.keep(session, store_seen.of_look(facts.storage.volumes))

    # -- discard: what is not needed any more is gone -----------------------------------------------------

    def discarded(self, flow: Flow) -> Look:
        return _settled(row_of(self.desk, flow).discarded)

    def discard(self, flow: Flow) -> None:
        row, facts = self._look(flow)
        plan = row.plan
        doomed = {"volume_id": plan.dropped[0], "below": list(plan.dropped[1:])}
        request = {"vm_id": row.vm_id, "disk": merge_asks.disk(row), **doomed, "claim": peers.claim_of(flow)}
        with peers.patient():
            self.desk.peers.ask(row.host_id, hostagent.discard_volume, request)
        gone = sum(facts.storage.size(volume_id) for volume_id in plan.dropped) or plan.copy
        back = chain.returned(row.before + gone, facts.storage.size(plan.stays))
        with flow.write() as session:
            store.forget_volumes(session, plan.dropped)
            store_jobs.change_merge(session, flow.id, discarded=True, bytes_returned=back)

    # -- every move ---------------------------------------------------------------------------------------

    def moved(self, session: Session, row: FlowRow, old: str, new: str) -> None:
        """The job follows; at the end the disk is free, the next merge comes in, and so does the removal's end."""
        more: dict[str, Any] = {}
        merge = store_jobs.merge(session, row.id)
        if new in (DONE, UNDONE, STUCK):
            # two merges of one snapshot may end at the same moment: the second has to see the end of the first
            store_jobs.shut_gate(session)
        if new == DONE:
            end = max(store_jobs.job(session, row.id).end, merge.bytes_merged)
            if row.data.get("offline"):  # the last look may have been before its end
                merge = _all_merged(session, merge, end)
            more = {"result": _result(merge), "cur": end, "end": end, "rate": 0}
        jobs.moved(session, row, self.desk.now(), **more)
        if new in (DONE, UNDONE):
            removal.ended(self.desk, session, merge)
        if new in (DONE, UNDONE, STUCK):
            removal.let_in(self.desk, session)
        if old != new:
            removal.settle(self.desk, session, merge.removal_id)
        else:
            jobs.sum_up(session, merge.removal_id, self.desk.now())

    # -- small parts --------------------------------------------------------------------------------------

    def _look(self, flow: Flow) -> tuple[MergeRow, DiskFacts]:
        return look(self.desk, flow, row_of(self.desk, flow))

    def _progress(self, flow: Flow, job: Job, *, force: bool) -> None:
        now = self.desk.now()
        with flow.write() as session:
            jobs.progress(session, flow.id, now, cur=job.cur, end=job.end, rate=None, force=force, offline=job.offline)


def row_of(desk: Desk, flow: Flow) -> MergeRow:
    with desk.db.read() as session:
        return store_jobs.merge(session, flow.id)


def look(desk: Desk, flow: Flow, row: MergeRow) -> tuple[MergeRow, DiskFacts]:
    """What the host sees. A VM that is not there any more may run on another host by now."""
    try:
        seen = _look_at(desk, flow, row)
    except (Unknown, errors.ServiceAway, errors.NoAnswer):
        moved = follow(desk, flow, row, silent=True)
        if moved is None:
            raise
        return moved, _look_at(desk, flow, moved)
    moved = follow(desk, flow, row, silent=False) if seen.qemu.state == "absent" else None
    return (row, seen) if moved is None else (moved, _look_at(desk, flow, moved))


def _look_at(desk: Desk, flow: Flow, row: MergeRow) -> DiskFacts:
    with peers.patient(peers.BLIND):
        return desk.peers.look(row.host_id, row.vm_id, merge_asks.disk(row), peers.claim_of(flow))


def ask_offline(desk: Desk, flow: Flow, row: MergeRow) -> None:
    """The VM is down. Its lease keeps it from being started meanwhile, on any host; not for longer than this takes."""
    flow.save(started=False, offline=True)  # a live job went with its QEMU: that is no failure
    with peers.patient(peers.TURNED), _held(desk, flow):
        lease, wait = desk.peers.vm_lease(row.vm_id, row.host_id, "its snapshots are merged")
        if wait:
            raise errors.LeaseHeld(vm_id=row.vm_id, holder="nobody; a start was asked for, and goes first")
        with watch.counted(flow):
            desk.peers.ask(row.host_id, hostagent.merge_offline, merge_asks.offline(flow, row, lease))
    with flow.write() as session:  # a short one has ended before it is looked at
        cur, end = store_jobs.merge(session, flow.id).bytes_merged, row.plan.copy
        jobs.progress(session, flow.id, desk.now(), cur=min(cur, end), end=end, rate=None, offline=True)


def turned(desk: Desk, flow: Flow, row: MergeRow, facts: DiskFacts) -> MergeRow:
    """A VM that started or went down since may bar its pull: nothing of that counts yet, and what was to go up goes
    down."""
    with desk.db.read() as session:
        known = store.chain_of(session, row.disk_id)
    plan = direction.now(row.plan, known, facts, desk.settings.policy())
    if plan == row.plan:
        return row
    with flow.write() as session:
        store_jobs.shut_gate(session)
        _find_room(session, plan, row, facts.storage.free)
        keep_plan(session, flow.id, plan, facts)
        return store_jobs.merge(session, flow.id)


@contextlib.contextmanager
def _held(desk: Desk, flow: Flow) -> Iterator[None]:
    """Write down that the lease was not free: each ask for it costs the host a process."""
    try:
        yield
    except errors.LeaseHeld:
        flow.save(held_until=desk.now().timestamp() + HELD_SECONDS)
        raise


def _look_to_ask(desk: Desk, flow: Flow, facts: DiskFacts) -> Look:
    """What is not done may be asked for now, or in a moment."""
    waits = facts.qemu.state == "absent" and desk.now().timestamp() < float(flow.data.get("held_until") or 0)
    return Look.RUNNING if waits else Look.ASK


def follow(desk: Desk, flow: Flow, row: MergeRow, *, silent: bool) -> MergeRow | None:
    """Go to the host on which inventory has the VM now; if it is down and our host is silent, to any that is up."""
    vm = desk.peers.vm(row.vm_id)
    host_id = vm["host_id"]
    if host_id is None and silent and vm["state"] == "down":
        host_id = next((found for found in desk.peers.hosts_up(vm) if found != row.host_id), None)
    if host_id in (None, row.host_id):
        return None
    with flow.write() as session:
        store_jobs.change_merge(session, flow.id, host_id=host_id)
    _log.info(f"merge of {row.disk_id}: goes on at host {host_id}", flow_id=flow.id)
    return dataclasses.replace(row, host_id=host_id)


def _find_room(session: Session, plan: MergePlan, row: MergeRow, free: int) -> None:
    """Raises NoSpace, or Unknown while others are at work: they give space back when they end."""
    promised = store_jobs.promised(session, row.domain_id, row.id)
    others = store_jobs.others_at_work(session, row.domain_id, row.id)
    with peers.patient((errors.NoSpace,) if others else ()):
        chain.room(plan, row.domain_id, free, promised, row.reserve)


def keep_plan(session: Session, merge_id: str, plan: MergePlan, facts: DiskFacts) -> None:
    """The plan of the merge, as it was computed from these facts. Its snapshots are not restorable from then on, before
    the first byte is copied: base becomes a mixture of several moments (in a pull it does not, but it will go)."""
    for snapshot_id in store_removals.snapshots_of(session, [merge_id])[merge_id]:
        store.change_snapshot(session, snapshot_id, restorable=False)
    ends: dict[str, Any] = {"child_id": plan.child_id, "between": list(plan.between)}
    ends |= {"pull": plan.pull, "below_id": plan.below_id, "note": plan.note}
    sizes = {"copy_bytes": plan.copy, "needs": plan.needs, "returns": plan.returns}
    before = facts.storage.size(plan.stays)
    store_jobs.change_merge(session, merge_id, planned=True, before=before, **ends, **sizes)
    store_jobs.change(session, merge_id, end=plan.copy)
    store_seen.keep(session, store_seen.of_look(facts.storage.volumes))


def keep_stall(session: Session, row: MergeRow, told: dict[str, Any]) -> None:
    """An ask that finishes what another began answers 0 for what was done before: keep the larger numbers."""
    stall = {part: max(float((row.stall or {}).get(part, 0)), float(number)) for part, number in told.items()}
    store_jobs.change_merge(session, row.id, stall=stall)


def _all_merged(session: Session, merge: MergeRow, end: int) -> MergeRow:
    store_jobs.change_merge(session, merge.id, bytes_merged=end)
    return dataclasses.replace(merge, bytes_merged=end)


def _result(merge: MergeRow) -> dict[str, Any]:
    return {"bytes_merged": merge.bytes_merged, "bytes_returned": merge.bytes_returned, "stall": merge.stall}


def _sure(row: MergeRow, facts: DiskFacts) -> None:
    if facts.unknown:
        raise Unknown(errors.VmUnsure(vm_id=row.vm_id, reason=facts.unknown))


def _refuse_to_turn(row: MergeRow, facts: DiskFacts) -> None:
    """Raises GoOn once the image has moved, Unknown while nobody can say."""
    _sure(row, facts)
    if chain.merged(row.plan, facts):
        raise GoOn("what stays holds everything already")


def _settled(done: bool) -> Look:
    return Look.SETTLED if done else Look.ASK


def _look_of(row: MergeRow, verdict: Verdict) -> Look:
    """The verdict in the runner's words. Raises Failed, Unknown."""
    if verdict.do is Do.GIVE_UP and verdict.problem is not None:
        raise Failed(verdict.problem)
    if verdict.do is Do.UNKNOWN:
        raise Unknown(errors.VmUnsure(vm_id=row.vm_id, reason=verdict.why))
    return {Do.GO_ON: Look.SETTLED, Do.WAIT: Look.RUNNING}.get(verdict.do, Look.ASK)
