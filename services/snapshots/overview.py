"""The disk snapshots of a storage domain in one list: pages of the read model, and how it is made anew.

Its rows follow the books in the transactions that change them (store_overview.py). What only the storage knows (sizes
of what guests write to, what lies there and belongs to nothing) comes with scans (rescans.py).
"""

from __future__ import annotations

from typing import Any

from chassis import clock, logs
from services.snapshots import rescans, store_lists, store_overview
from services.snapshots.desk import Desk

MAX_PAGES = 1000
Body = dict[str, Any]
_log = logs.get("snapshots")


def list_disk_snapshots(desk: Desk, request: Body) -> Body:
    """Raises NotFound, BadRequest."""
    with desk.db.read() as session:
        found = store_lists.page(session, request)
    if not found["total"]:
        desk.peers.domain(request["id"])  # nothing there, or no such domain
    return found


def list_leftovers(desk: Desk, request: Body) -> Body:
    """Raises NotFound, BadRequest."""
    with desk.db.read() as session:
        found = store_lists.odd(session, request, desk.settings.deep_chain)
    if not found["total"]:
        desk.peers.domain(request["id"])
    return found


def fill(desk: Desk) -> None:
    """Rows for what was there before the overview was; nothing to do at any later start."""
    for _ in range(MAX_PAGES):
        with desk.db.write() as session:
            found = store_overview.missing(session, rescans.BATCH)
            if not found or not store_overview.refresh_now(session, found):
                return


# -- anew -------------------------------------------------------------------------------------------------


def rebuild(desk: Desk, request: Body) -> Body:
    """From the books first, which needs nobody; then names, sizes and leftovers. Raises what a scan raises."""
    domain = desk.peers.domain(request["id"])
    _refresh_all(desk, domain["id"])
    _name_vms(desk)
    found = rescans.scan(desk, domain)
    count, rows = _refresh_all(desk, domain["id"])
    _log.info(
        f"domain {domain['id']}: overview made anew, {rows} disk snapshots, {found.leftovers} leftovers",
        domain_id=domain["id"],
    )
    shown = {"disks": count, "disk_snapshots": rows, "leftovers": found.leftovers}
    return {"domain_id": domain["id"], **shown, "scanned_at": clock.iso(found.moment)}


def _refresh_all(desk: Desk, domain_id: str) -> tuple[int, int]:
    """How many disks and rows there are; rows of disks that are gone go too."""
    with desk.db.read() as session:
        known, shown = store_overview.disks_on(session, domain_id), store_overview.shown_on(session, domain_id)
    rows = 0
    for batch in rescans.batches(sorted(known | shown)):
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
