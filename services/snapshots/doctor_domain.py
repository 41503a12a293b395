"""`drystone doctor domain`: every disk of a storage domain from every side, page by page; and, with the first page,
what lies on the domain beside them. Looks only; a repair is asked for disk by disk."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from contracts import errors, hostagent
from services.snapshots import doctor, survey
from services.snapshots.desk import Desk
from services.snapshots.survey import MAX_FINDINGS, Finding

SCAN = 80.0  # seconds for every file of a domain
LOOKING = 110.0  # seconds of one answer; disks that were not reached by then are told as not looked at
HOSTS = 3  # that are asked for the domain before it is given up
MAX_DISKS = 100_000
PAGE = 1000
Body = dict[str, Any]


def diagnose_domain(desk: Desk, request: Body) -> Body:
    """contracts.doctor.DomainDiagnosis. Raises NotFound."""
    domain = desk.peers.domain(request["id"])
    limit = time.monotonic() + LOOKING
    page = desk.peers.disks(domain["id"], request["after"], request["limit"])
    findings = _findings(desk, domain) if request["after"] is None else []
    items = [found for disk in page["items"] if (found := _disk(desk, disk, late=time.monotonic() > limit))]
    return {
        "domain_id": domain["id"],
        "looked_at": len(page["items"]),
        "items": items,
        "findings": [dataclasses.asdict(one) for one in findings[:MAX_FINDINGS]],
        "findings_total": len(findings),
        "next": page["next"],
        "total": page["total"],
    }


def _disk(desk: Desk, disk: Mapping[str, Any], *, late: bool) -> Body | None:
    """A disk that differs. One that is being made or deleted is left out, and one on which a job works: what differs
    there is on its way."""
    if disk["state"] != "ok":
        return None
    if late:
        action = f"Look at it alone: drystone doctor disk {disk['id']}"
        message = "There was no time left to look at it."
        differences = [{"code": "not_seen", "volume_id": None, "message": message, "action": action}]
        return _told(disk, differences, repairable=False)
    found = doctor.look(desk, disk).found
    if all(one.code == "busy" for one in found.differences):
        return None
    repairable = found.plan is not None and bool(found.plan.changes)
    return _told(disk, [one.facts() for one in found.differences], repairable=repairable)


def _told(disk: Mapping[str, Any], differences: list[Body], *, repairable: bool) -> Body:
    shown = {"disk_id": disk["id"], "alias": disk["alias"], "vm_id": disk["vm_id"]}
    return {**shown, "differences": differences, "repairable": repairable}


# -- the domain as a whole --------------------------------------------------------------------------------


def _findings(desk: Desk, domain: Mapping[str, Any]) -> list[Finding]:
    ref = {"domain": {"id": domain["id"], "path": domain["path"]}}
    try:
        host_id, told = first_look(desk, domain, ref)
        scan = desk.peers.ask(host_id, hostagent.scan_domain, ref, SCAN)
    except errors.Problem as problem:
        return survey.unusable(domain, problem, problem.advice)
    return survey.of_domain(domain, told) + survey.of_files(scan, all_disks(desk, domain["id"]))


def first_look(desk: Desk, domain: Mapping[str, Any], ref: Body) -> tuple[str, Body]:
    """The first host that sees the domain, and what it sees. What one host cannot see another one may."""
    hosts = desk.peers.hosts_up({"data_center_id": domain["data_center_id"], "cluster_id": ""})
    last: errors.Problem = errors.NoHost(kind="data center", id=domain["data_center_id"], reason="none is up")
    for host_id in hosts[:HOSTS]:
        try:
            return host_id, desk.peers.ask(host_id, hostagent.look_domain, ref)
        except (errors.DomainUnusable, errors.ServiceAway, errors.NoAnswer, errors.StorageTimeout) as problem:
            last = problem
    raise last


def all_disks(desk: Desk, domain_id: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    after: str | None = None
    while len(found) < MAX_DISKS:
        page = desk.peers.disks(domain_id, after, PAGE)
        found += page["items"]
        after = page["next"]
        if after is None:
            break
    return found
