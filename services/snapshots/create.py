"""Taking a snapshot of all or chosen disks of a VM, running or down. The flow, read from the top.

An unknown create goes forward: an empty overlay over the old leaf is right whether or not QEMU switched to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from chassis import logs
from chassis.database import after_commit
from chassis.steps import DONE, UNDONE, Flow, FlowKind, FlowRow, GoOn, Look, Step, Unknown
from contracts import errors, hostagent
from services.snapshots import asking, chain, jobs, leaves, peers, store, store_jobs, store_seen
from services.snapshots.chain import Do
from services.snapshots.desk import Desk
from services.snapshots.facts import DiskFacts
from services.snapshots.leaves import Left

NAME = "snapshot"
ACTION = "taking a snapshot"
_log = logs.get("snapshots")


class Create:
    """Steps of the flow; every one looks first, then asks once, last."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def kind(self) -> FlowKind:
        steps = (
            Step("plan", self.planned, self.plan),
            Step("switch", self.switched, self.switch, undo=self.tidy, no_way_back=True),
            Step("record", self.recorded, self.record),
        )
        return FlowKind(NAME, steps, self.moved)

    # -- plan: the disks are still as they were when the request was taken --------------------------------

    def planned(self, flow: Flow) -> Look:
        return Look.SETTLED if flow.data.get("checked") else Look.ASK

    def plan(self, flow: Flow) -> None:
        for line in flow.data["disks"]:
            with self.desk.db.read() as session:
                known = store.chain_of(session, line["disk_id"])
            facts = self._look(flow, line)
            with peers.patient():
                chain.same_chain(flow.subject, known, facts)
        flow.save(checked=True)

    # -- switch: every new volume is the leaf, on the storage and for a living QEMU -----------------------

    def switched(self, flow: Flow) -> Look:
        looks = [(_leaf(line), self._look(flow, line)) for line in flow.data["disks"]]
        verdicts = [leaves.switched(leaf, facts) for leaf, facts in looks]
        for verdict in verdicts:
            if verdict.do is Do.UNKNOWN:
                raise Unknown(errors.VmUnsure(vm_id=flow.subject, reason=verdict.why))
        if any(verdict.do is not Do.GO_ON for verdict in verdicts):
            return Look.ASK
        flow.save(seen=_seen(looks))
        return Look.SETTLED

    def switch(self, flow: Flow) -> None:
        disks = [
            {"disk": _ref(line), "volume_id": line["volume_id"], "parent_id": line["parent_id"]}
            for line in flow.data["disks"]
        ]
        request = {"vm_id": flow.subject, "disks": disks, "quiesce": flow.data["quiesce"]}
        flow.save(asked=sorted({*_asked(flow), flow.data["host_id"]}))
        with peers.patient():
            told = self.desk.peers.ask(
                flow.data["host_id"], hostagent.switch_leaves, {**request, "claim": peers.claim_of(flow)}
            )
        # an ask that found it done knows no more than the first one did
        flow.save(quiesced=told["quiesced"] or bool(flow.data.get("quiesced")), live=told["live"])

    def tidy(self, flow: Flow) -> Look | None:
        """Undo: no new volume is left. If one may be in use the create goes forward instead."""
        self._fence(flow)
        seen = {line["disk_id"]: self._look(flow, line) for line in flow.data["disks"]}
        for facts in seen.values():
            if facts.unknown:
                raise Unknown(errors.VmUnsure(vm_id=flow.subject, reason=facts.unknown))
        found = {line["disk_id"]: leaves.left(_leaf(line), seen[line["disk_id"]]) for line in flow.data["disks"]}
        if Left.LEAF in found.values():
            self._clear(flow, seen)
            raise GoOn("a new volume is the leaf or may become it")
        for line in flow.data["disks"]:
            if found[line["disk_id"]] is Left.UNUSED:
                self._discard(flow, line)
        return None

    def _clear(self, flow: Flow, seen: Mapping[str, DiskFacts]) -> None:
        """Before it goes forward: a deletion that has begun is ended, so that the volume is made anew."""
        disks = [(line, seen[line["disk_id"]]) for line in flow.data["disks"]]
        if leaves.torn((_leaf(line), facts) for line, facts in disks):
            flow.save(torn=True)
        for line, facts in disks:
            if leaves.going(_leaf(line), facts):
                self._discard(flow, line)

    # -- record: the database has the new chains ----------------------------------------------------------

    def recorded(self, flow: Flow) -> Look:
        with self.desk.db.read() as session:
            state = store.snapshot(session, flow.data["snapshot_id"])["state"]
        return Look.ASK if state == "creating" else Look.SETTLED

    def record(self, flow: Flow) -> None:
        leaves = [_leaf(line) for line in flow.data["disks"]]
        how = {"quiesced": bool(flow.data.get("quiesced")), "live": bool(flow.data.get("live"))}
        if flow.data.get("torn"):
            how["restorable"] = False
        with flow.write() as session:
            if store.snapshot(session, flow.data["snapshot_id"])["state"] == "creating":
                store.finish_snapshot(session, flow.data["snapshot_id"], leaves, **how)
                seen = flow.data.get("seen") or {}
                store_seen.keep(session, {id_: store_seen.of_scan(row) for id_, row in seen.items()})

    # -- every move ---------------------------------------------------------------------------------------

    def moved(self, session: Session, row: FlowRow, _old: str, new: str) -> None:
        """The job follows; at the end the disks are free, and an undone snapshot is gone."""
        more: dict[str, Any] = {}
        if new == DONE:
            more = {"result": {key: bool(row.data.get(key)) for key in ("quiesced", "live")}}
        jobs.moved(session, row, self.desk.now(), **more)
        if new in (DONE, UNDONE):
            store.unlock(session, row.id)
        if new == UNDONE:
            store.delete_snapshot(session, row.data["snapshot_id"])

    # -- small parts --------------------------------------------------------------------------------------

    def _look(self, flow: Flow, line: Mapping[str, Any]) -> DiskFacts:
        """What the VM's host sees. Where no QEMU lives the VM may run elsewhere by now, and write to the old volume."""
        seen = self._look_at(flow, line)
        if seen.qemu.state != "absent":
            return seen
        vm = self.desk.peers.vm(flow.subject)
        if vm["state"] not in ("running", "paused", "down"):
            raise Unknown(errors.VmUnsure(vm_id=flow.subject, reason=f"it is {vm['state']}"))
        if vm["host_id"] in (None, flow.data["host_id"]):
            return seen
        flow.save(host_id=vm["host_id"])
        return self._look_at(flow, line)

    def _look_at(self, flow: Flow, line: Mapping[str, Any]) -> DiskFacts:
        with peers.patient(peers.BLIND):
            return self.desk.peers.look(flow.data["host_id"], flow.subject, _ref(line), peers.claim_of(flow))

    def _fence(self, flow: Flow) -> None:
        """An ask of ours whose answer was lost may be on its way still, and switch a guest to what is dropped here:
        from now on every agent that was asked refuses it. (A create that goes forward after this asks under a new
        claim.)"""
        for host_id in sorted({*_asked(flow), flow.data["host_id"]}):
            for line in flow.data["disks"]:
                request = {"vm_id": flow.subject, "disk": _ref(line), "claim": peers.claim_of(flow)}
                with peers.patient():
                    self.desk.peers.ask(host_id, hostagent.cancel_job, request)

    def _discard(self, flow: Flow, line: Mapping[str, Any]) -> None:
        request = {"vm_id": flow.subject, "disk": _ref(line), "volume_id": line["volume_id"]}
        with peers.patient():
            self.desk.peers.ask(
                flow.data["host_id"], hostagent.discard_volume, {**request, "claim": peers.claim_of(flow)}
            )


def _leaf(line: Mapping[str, Any]) -> leaves.Leaf:
    return leaves.Leaf(line["disk_id"], line["volume_id"], line["parent_id"])


def _seen(looks: Iterable[tuple[leaves.Leaf, DiskFacts]]) -> dict[str, Any]:
    """For the overview: what the volume takes that the guest has just left, and the new one."""
    found = [facts.storage.volumes.get(id_) for leaf, facts in looks for id_ in (leaf.parent_id, leaf.volume_id)]
    there = [one for one in found if one is not None]
    return {one.volume_id: {"actual_size": one.actual_size, "created_at": one.created_at} for one in there}


def _asked(flow: Flow) -> list[str]:
    """The hosts that were ever asked to switch; the VM may have moved since."""
    return list(flow.data.get("asked", ()))


def _ref(line: Mapping[str, Any]) -> dict[str, Any]:
    return peers.disk_ref(line["disk_id"], line["domain_id"], line["path"])


# -- the request ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """A disk that is to be snapshotted: inventory's Disk, its domain and its chain."""

    disk: Mapping[str, Any]
    domain: Mapping[str, Any]
    chain: tuple[str, ...]

    @property
    def ref(self) -> dict[str, Any]:
        return peers.disk_ref(self.disk["id"], self.domain["id"], self.domain["path"])


def begin(desk: Desk, request: dict[str, Any]) -> dict[str, Any]:
    """Refuse or start: contracts.snapshots.create_snapshot."""
    hashed = jobs.body_hash("snapshot", request)
    with desk.db.read() as session:
        job = jobs.begun(session, request["job_id"], hashed)
    if job is not None:
        return job
    vm = desk.peers.vm(request["vm_id"])
    asking.refuse_between(vm, ACTION, "running, paused or down")
    chosen = choose(desk, vm, request["disk_ids"])
    _refuse_busy(desk, chosen)
    host_id = look_at_all(desk, vm, chosen)
    with desk.db.write() as session:
        job = jobs.begun(session, request["job_id"], hashed)
        return job or _start(desk, session, request, chosen=chosen, host_id=host_id, hashed=hashed)


def choose(desk: Desk, vm: Mapping[str, Any], wanted: list[str] | None) -> list[Chosen]:
    """The disks, all plugged ones or those wanted. Raises NotFound, BadRequest, DomainNotActive, LimitExceeded."""
    plugged = {disk["id"]: disk for disk in vm["disks"]}
    ids = sorted(plugged) if wanted is None else sorted(set(wanted))
    if not ids:
        raise errors.BadRequest(errors={"disk_ids": [f"VM {vm['id']} has no plugged disk, or none was chosen."]})
    chosen = []
    for disk_id in ids:
        if disk_id not in plugged:
            raise errors.NotFound(kind=f"disk plugged in VM {vm['id']}", id=disk_id)
        disk = plugged[disk_id]
        refuse_unready(disk, ACTION)
        with desk.db.read() as session:
            known = store.chain_of(session, disk_id) or (disk["first_volume_id"],)
        if len(known) > desk.settings.snapshots_per_vm:
            limit = desk.settings.snapshots_per_vm
            raise errors.LimitExceeded(what=f"the chain of disk {disk_id}", value=len(known) + 1, limit=limit + 1)
        chosen.append(Chosen(disk, desk.peers.active_domain(disk["domain_id"]), known))
    return chosen


def refuse_unready(disk: Mapping[str, Any], action: str) -> None:
    """Refuse a disk that is being made or copied. Raises DiskWrongState."""
    if disk["state"] != "ok":
        raise errors.DiskWrongState(disk_id=disk["id"], state=disk["state"], action=action, needs="ok")


def _refuse_busy(desk: Desk, chosen: list[Chosen]) -> None:
    """Before any agent is asked: one job per disk. The lock that is taken later is what counts."""
    with desk.db.read() as session:
        store.refuse_locked(session, [one.disk["id"] for one in chosen])


def look_at_all(desk: Desk, vm: Mapping[str, Any], chosen: list[Chosen]) -> str:
    """Look at every disk and refuse what does not fit; answers the host that will do it."""
    if vm["state"] != "down":
        desk.peers.host_up(vm["host_id"])
        _look_at(desk, vm, chosen, vm["host_id"])
        return str(vm["host_id"])
    last: errors.Problem = errors.NoHost(kind="data center", id=vm["data_center_id"], reason="none is up")
    for host_id in desk.peers.hosts_up(vm):
        try:
            _look_at(desk, vm, chosen, host_id)
            return host_id
        except (errors.DomainUnusable, errors.ServiceAway, errors.NoAnswer, errors.StorageTimeout) as problem:
            last = problem  # what a host that is up says is worth more than that there is no other
    raise last


def _look_at(desk: Desk, vm: Mapping[str, Any], chosen: list[Chosen], host_id: str) -> None:
    for one in chosen:
        facts = desk.peers.look(host_id, vm["id"], one.ref)
        chain.same_chain(vm["id"], one.chain, facts)
        if facts.qemu.alive == (vm["state"] == "down"):
            state = "running" if facts.qemu.alive else "not running"
            needs = f"{vm['state']}, as inventory has it"
            raise errors.VmWrongState(vm_id=vm["id"], state=f"{state} on host {host_id}", action=ACTION, needs=needs)
        if facts.qemu.job is not None:
            raise errors.ForeignJob(disk_id=one.disk["id"], job=facts.qemu.job.named())


def _start(
    desk: Desk, session: Session, request: Mapping[str, Any], *, chosen: list[Chosen], host_id: str, hashed: str
) -> dict[str, Any]:
    snapshot_id, vm_id, job_id = request["id"], request["vm_id"], request["job_id"]
    store.lock(session, [one.disk["id"] for one in chosen], job_id, vm_id)
    for one in chosen:
        store.know(session, one.disk)
        if store.chain_of(session, one.disk["id"]) != one.chain:
            raise errors.DiskBusy(disk_id=one.disk["id"], flow_id="a job that ended just now")
    row = {"id": snapshot_id, "vm_id": vm_id, "description": request["description"], "job_id": job_id}
    actives = {one.disk["id"]: one.chain[-1] for one in chosen}
    store.add_snapshot(session, {**row, "created_at": desk.now()}, actives)
    line = {"id": job_id, "kind": NAME, "vm_id": vm_id, "snapshot_id": snapshot_id, "user": jobs.user()}
    words = f"Take snapshot {request['description'] or snapshot_id}"
    store_jobs.add(session, **line, step="plan", description=words, body_hash=hashed, created_at=desk.now())
    data = {"snapshot_id": snapshot_id, "host_id": host_id, "quiesce": request["quiesce"]}
    data["disks"] = [_line(snapshot_id, one) for one in chosen]
    desk.runner.start(session, NAME, job_id, vm_id, data, body=hashed)
    after_commit(session, lambda: _log.info(f"snapshot of {vm_id}: begins with {len(chosen)} disks", flow_id=job_id))
    return jobs.view(session, store_jobs.job(session, job_id))


def _line(snapshot_id: str, one: Chosen) -> dict[str, Any]:
    """What the flow keeps of a disk. The new volume's id follows from the snapshot's: asking twice makes one."""
    return {
        "disk_id": one.disk["id"],
        "volume_id": str(uuid.uuid5(uuid.UUID(snapshot_id), one.disk["id"])),
        "parent_id": one.chain[-1],
        "domain_id": one.domain["id"],
        "path": one.domain["path"],
    }
