"""The disk snapshots of a storage domain in one list: pages of the read model, and how it is made anew.

Its rows follow the books in the transactions that change them (store_overview.py). What only the storage knows (sizes
of volumes that no merge has touched, what lies there and belongs to nothing) comes with a scan, when it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chassis import clock, logs
from contracts import hostagent
from services.snapshots import doctor_domain, store_overview, survey
from services.snapshots.desk import Desk
from services.snapshots.survey import Finding

BATCH = 200  # disks in one transaction: a write lasts some tens of milliseconds and lets others in
SCAN = 100.0  # seconds for every file of a domain
MAX_KEPT = 10_000  # leftovers of one domain
MAX_PAGES = 1000
Body = dict[str, Any]
_log = logs.get("snapshots")


def list_disk_snapshots(desk: Desk, request: Body) -> Body:
    """Raises NotFound, BadRequest."""
    with desk.db.read() as session:
        found = store_overview.page(session, request)
    if not found["total"]:
        desk.peers.domain(request["id"])  # nothing there, or no such domain
    return found


def list_leftovers(desk: Desk, request: Body) -> Body:
    """Raises NotFound, BadRequest."""
    with desk.db.read() as session:
        found = store_overview.odd(session, request, desk.settings.deep_chain)
    if not found["total"]:
        desk.peers.domain(request["id"])
    return found


def fill(desk: Desk) -> None:
    """Rows for what was there before the overview was; nothing to do at any later start."""
    for _ in range(MAX_PAGES):
        with desk.db.write() as session:
            found = store_overview.missing(session, BATCH)
            if not found or not store_overview.refresh_now(session, found):
                return


# -- anew -------------------------------------------------------------------------------------------------


def rebuild(desk: Desk, request: Body) -> Body:
    """From the books first, which needs nobody; then names, sizes and leftovers. Raises what a scan raises."""
    domain = desk.peers.domain(request["id"])
    _refresh_all(desk, domain["id"])
    _name_vms(desk)
    scan, leftovers, moment = _scanned(desk, domain)
    _keep_sizes(desk, scan)
    with desk.db.write() as session:
        store_overview.keep_leftovers(session, domain["id"], leftovers, moment)
    count, rows = _refresh_all(desk, domain["id"])
    _log.info(
        f"domain {domain['id']}: overview made anew, {rows} disk snapshots, {len(leftovers)} leftovers",
        domain_id=domain["id"],
    )
    shown = {"disks": count, "disk_snapshots": rows, "leftovers": len(leftovers)}
    return {"domain_id": domain["id"], **shown, "scanned_at": clock.iso(moment)}


def _refresh_all(desk: Desk, domain_id: str) -> tuple[int, int]:
    """How many disks and rows there are; rows of disks that are gone go too."""
    with desk.db.read() as session:
        known, shown = store_overview.disks_on(session, domain_id), store_overview.shown_on(session, domain_id)
    rows = 0
    for batch in _batches(sorted(known | shown)):
        with desk.db.write() as session:
            rows += store_overview.refresh_now(session, batch)
    return len(known), rows


def _name_vms(desk: Desk) -> None:
    after: str | None = None
    for _ in range(MAX_PAGES):
        names, after = desk.peers.vm_names(after)
        with desk.db.write() as session:
            store_overview.name_vms(session, names)
        if after is None:
            return


def _scanned(desk: Desk, domain: Mapping[str, Any]) -> tuple[Body, list[Body], Any]:
    """The scan, what it shows that is odd, and when it was begun."""
    ref = {"domain": {"id": domain["id"], "path": domain["path"]}}
    moment = desk.now()
    host_id, _ = doctor_domain.first_look(desk, domain, ref)
    with desk.db.read() as session:
        before = store_overview.volumes_on(session, domain["id"])
    scan = desk.peers.ask(host_id, hostagent.scan_domain, ref, SCAN)
    known = list(doctor_domain.all_disks(desk, domain["id"]))
    with desk.db.read() as session:
        books = before | store_overview.volumes_on(
            session, domain["id"]
        )  # what was made or deleted meanwhile is nobody's leftover
    sizes = {row["volume_id"]: row["actual_size"] for row in scan["volumes"]}
    found = [*survey.of_files(scan, known), *survey.without_disk(scan, known, books)]
    return scan, [_leftover(one, sizes) for one in found[:MAX_KEPT]], moment


def _leftover(one: Finding, sizes: Mapping[str, int]) -> Body:
    return {**dataclasses.asdict(one), "size": sizes.get(one.volume_id or "")}


def _keep_sizes(desk: Desk, scan: Body) -> None:
    for batch in _batches(scan["volumes"]):
        with desk.db.write() as session:
            for row in batch:
                store_overview.keep_size(session, row["volume_id"], row["actual_size"])


def _batches(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
