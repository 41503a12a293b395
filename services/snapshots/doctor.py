"""`drystone doctor disk`: look from every side, say what differs, and repair when asked and not before.

A repair first lets the host write the storage's marks and metadata, where they lag behind what QEMU and the headers
show; then one transaction makes the database follow; then volumes that a person named are deleted, as a merge deletes
its top. Each part is right without the next, so a repair that was cut off is repeated after another look.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chassis import logs
from contracts import errors, hostagent
from services.snapshots import diagnosis, jobs, peers, store, store_doctor
from services.snapshots.books import Books
from services.snapshots.desk import Desk
from services.snapshots.diagnosis import Diagnosis
from services.snapshots.facts import DiskFacts
from services.snapshots.repair import Plan

STEADY = ("running", "paused", "down")
_log = logs.get("snapshots")
Body = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """One disk (inventory's) as it was seen. `ref`: how the host names it; None where nobody could be asked."""

    disk: Mapping[str, Any]
    books: Books
    found: Diagnosis
    host_id: str | None = None
    ref: Mapping[str, Any] | None = None
    facts: DiskFacts | None = None

    def told(self) -> Body:
        """contracts.doctor.Diagnosis."""
        facts, blocked, plan = self.facts, self.found.blocked, self.found.plan
        return {
            "disk_id": self.disk["id"],
            "alias": self.disk["alias"],
            "vm_id": self.disk["vm_id"],
            "domain_id": self.disk["domain_id"],
            "host_id": self.host_id,
            "qemu": facts.qemu.state if facts else None,
            "libvirt": facts.libvirt.state if facts else None,
            "rows": list(self.found.rows),
            "differences": [one.facts() for one in self.found.differences],
            "repair": {
                "possible": plan is not None,
                "reason": blocked.message if blocked else None,
                "changes": list(plan.changes) if plan else [],
                "adopt": list(plan.adopt) if plan else [],
                "discard": list(plan.discard) if plan else [],
            },
            "digest": self.found.digest,
        }


# -- looking ----------------------------------------------------------------------------------------------


def diagnose_disk(desk: Desk, request: Body) -> Body:
    return look(desk, desk.peers.disk(request["disk_id"])).told()


def look(desk: Desk, disk: Mapping[str, Any]) -> Look:
    """What the VM's host, or for a disk of no running VM any host that is up, sees of it, beside the database."""
    facts, unseen, host_id, ref = None, None, None, None
    try:
        domain = desk.peers.active_domain(disk["domain_id"])
        ref = peers.disk_ref(disk["id"], domain["id"], domain["path"])
        host_id = _host(desk, disk, domain)
        facts = desk.peers.look(host_id, disk["vm_id"], ref)
    except errors.Problem as problem:
        unseen, host_id = problem, None
    with desk.db.read() as session:
        books = store_doctor.books(session, disk)
    return Look(disk, books, diagnosis.diagnose(books, facts, unseen), host_id, ref, facts)


def _host(desk: Desk, disk: Mapping[str, Any], domain: Mapping[str, Any]) -> str:
    """Who can say what is true. Raises VmUnsure, VmWrongState, HostNotUp, ClockOff, NoHost."""
    vm = desk.peers.vm(disk["vm_id"]) if disk["vm_id"] else {"state": "down", "cluster_id": ""}
    if vm["state"] not in (*STEADY, "unsure"):
        raise errors.VmWrongState(vm_id=vm["id"], state=vm["state"], action="looking at its disks", needs="at rest")
    if vm["state"] != "down":
        return str(desk.peers.host_up(vm["host_id"])["id"])
    found = desk.peers.hosts_up({**vm, "data_center_id": domain["data_center_id"]})
    if not found:
        raise errors.NoHost(kind="data center", id=domain["data_center_id"], reason="none is up")
    return str(desk.peers.host_up(found[0])["id"])


# -- the repair -------------------------------------------------------------------------------------------


def repair_disk(desk: Desk, request: Body) -> Body:
    """contracts.snapshots.repair_disk. Where nothing is to be repaired any more, nothing is done: asked twice."""
    disk = desk.peers.disk(request["disk_id"])
    seen = look(desk, disk)
    plan = _plan_of(seen)
    discard = [id_ for id_ in request["discard"] if seen.facts and id_ in seen.facts.storage.volumes]
    changes = list(plan.changes)
    if changes or discard:
        if seen.found.digest != request["expect"]:
            raise errors.DiagnosisChanged(disk_id=disk["id"], expect=request["expect"])
        _refuse_unnamed(seen, plan, request)
        _write_down(desk, seen, plan)
        changes += _discard(desk, seen, discard)
    return {"disk_id": disk["id"], "changes": changes, "diagnosis": look(desk, disk).told()}


def _plan_of(seen: Look) -> Plan:
    """Raises DiskBusy, VmUnsure, NotRepairable."""
    blocked, disk_id = seen.found.blocked, seen.disk["id"]
    if seen.books.busy is not None:
        raise errors.DiskBusy(disk_id=disk_id, flow_id=seen.books.busy)
    if blocked is not None and blocked.code == "unsure" and seen.facts is not None:
        raise errors.VmUnsure(vm_id=seen.disk["vm_id"], reason=seen.facts.unknown)
    if seen.found.plan is None:
        reason = blocked.message if blocked else "Nobody can say what its chain is."
        raise errors.NotRepairable(disk_id=disk_id, reason=reason, advice=blocked.action if blocked else "")
    return seen.found.plan


def _refuse_unnamed(seen: Look, plan: Plan, request: Body) -> None:
    """What the database does not know is neither taken in nor dropped unless a person named it.

    Raises NotRepairable."""
    command = f"drystone doctor disk {seen.disk['id']} --repair"
    for needed, option in ((plan.adopt, "adopt"), (plan.discard, "discard")):
        missing = [id_ for id_ in needed if id_ not in request[option]]
        if missing:
            reason = f"The database does not know volume {missing[0]}."
            advice = f"If that is right, name it: {command} --{option} {missing[0]}"
            raise errors.NotRepairable(disk_id=seen.disk["id"], reason=reason, advice=advice)
    strange = [id_ for id_ in request["adopt"] if id_ not in (*plan.adopt, *plan.truth)]
    strange += [id_ for id_ in request["discard"] if id_ in (*plan.template, *plan.truth)]
    if strange:
        reason = f"Volume {strange[0]} is not one that could be taken in, or is needed."
        raise errors.NotRepairable(disk_id=seen.disk["id"], reason=reason, advice="Leave it out.")


def _write_down(desk: Desk, seen: Look, plan: Plan) -> None:
    """First the storage, then the database."""
    if plan.storage:
        chain = list(reversed((*plan.template, *plan.truth)))
        _ask(desk, seen, hostagent.record_chain, chain=chain, unused=list(plan.unused))
    if plan.changes:
        with desk.db.write() as session:
            store_doctor.apply(session, seen.disk, seen.books, plan, desk.now(), jobs.user())


def _discard(desk: Desk, seen: Look, named: list[str]) -> list[str]:
    """Delete volumes that nothing reads, those on top first: the host looks at every chain of the domain before.

    Answers what was done."""
    if not named or seen.facts is None:
        return []
    storage = seen.facts.storage
    top, *below = sorted(named, key=lambda id_: (-len(storage.below(id_)), id_))
    _ask(desk, seen, hostagent.discard_volume, volume_id=top, below=below)
    with desk.db.write() as session:
        store.forget_volumes(session, (top, *below))
    who = jobs.user()
    for volume_id in (top, *below):
        sentence = f"volume {volume_id} of disk {seen.disk['id']} was in no chain: deleted for {who}"
        _log.info(sentence, disk_id=seen.disk["id"], user=who)
    return [f"Storage: volume {volume_id} is deleted." for volume_id in (top, *below)]


def _ask(desk: Desk, seen: Look, promise: Any, **more: Any) -> None:
    claim = {"flow_id": str(uuid.uuid4()), "number": 1}
    request = {"vm_id": seen.disk["vm_id"], "disk": dict(seen.ref or {}), "claim": claim, **more}
    desk.peers.ask(str(seen.host_id), promise, request)
