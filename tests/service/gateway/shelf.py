"""The lists of a storage domain behind the gateway: what a test puts there is told, filtered by VM alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts import errors

Row = dict[str, Any]
WHEN = "2026-01-02T03:04:05.678Z"


class Shelf:
    def __init__(self, domain: Callable[[str, Row], Row]) -> None:
        self._domain = domain
        self.disk_snapshots: list[Row] = []
        self.leftovers: list[Row] = []
        self.scanned = False

    def list_disk_snapshots(self, request: Row) -> Row:
        self._domain("storage_domain", request)
        rows = [row for row in self.disk_snapshots if request["vm_id"] in (None, row["vm_id"])]
        sums = {name: sum(row[name] or 0 for row in rows) for name in ("size", "returns")}
        return {**self._page(rows, request), **sums}

    def list_leftovers(self, request: Row) -> Row:
        self._domain("storage_domain", request)
        return self._page(self.leftovers, request)

    def rebuild(self, request: Row) -> Row:
        self._domain("storage_domain", request)
        self.scanned = True
        counts = {"disks": 1, "disk_snapshots": len(self.disk_snapshots), "leftovers": len(self.leftovers)}
        return {"domain_id": request["id"], **counts, "scanned_at": WHEN}

    def _page(self, rows: list[Row], request: Row) -> Row:
        after = request["after"] or "0"
        if not after.isdecimal():
            raise errors.BadRequest(errors={"after": ["Not a cursor of this list."]})
        end = int(after) + request["limit"]
        following = str(end) if end < len(rows) else None
        told = {"items": rows[int(after) : end], "next": following, "total": len(rows)}
        return {**told, "scanned_at": WHEN if self.scanned else None}
