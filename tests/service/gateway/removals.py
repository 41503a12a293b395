"""Removals of many in the gateway's fake world: what HTTP shows of them."""

from __future__ import annotations

from typing import Any, Protocol

from contracts import errors

Row = dict[str, Any]
NOW = "2026-01-02T03:04:05.678Z"
GIB = 2**30
GHOST = "22222222-2222-4222-8222-222222222222"


class Rows(Protocol):
    """The part of the world that removals need."""

    rows: dict[str, dict[str, Row]]

    def get(self, kind: str, request: Row) -> Row: ...

    def job(self, request: Row, kind: str, vm_id: str) -> Row: ...


class Removals:
    def __init__(self, world: Rows) -> None:
        self._world = world
        self._removed: dict[str, list[str]] = {}

    def begin(self, request: Row) -> Row:
        matched = [id for id, row in self._world.rows["snapshot"].items() if self._matches(row, request.get("filter"))]
        ids = request["snapshots"] if request["snapshots"] is not None else matched
        ids = [pair["snapshot_id"] for pair in request.get("disk_snapshots") or ()] or ids
        ids = list(self._world.rows["snapshot"])[-4:] if request.get("listed") else ids
        if request.get("expected_count") not in (None, len(ids)):
            raise errors.CountDiffers(found=len(ids), expected=request["expected_count"])
        if not ids:
            raise errors.NothingToRemove(reason="it names no snapshot with a disk")
        vm_id = self._world.get("snapshot", {"id": ids[0]})["vm_id"]
        self._removed[request["job_id"]] = ids
        if request["dry_run"]:
            planned = {
                "id": request["job_id"],
                "description": "",
                "user": "admin",
                "snapshot_id": ids[0],
                "vm_id": vm_id,
            }
            return self.told(planned, "planned")
        job = self._world.job({**request, "id": ids[0]}, "removal", vm_id)
        return self.told(job, "running")

    def _matches(self, row: Row, condition: Row | None) -> bool:
        wanted = {k: v for k, v in (condition or {}).items() if k == "vm_id" and v is not None}
        return condition is not None and all(row[k] == v for k, v in wanted.items())

    def retry(self, request: Row) -> Row:
        self._world.get("job", {"id": request["id"]})
        return self.begin(request | {"snapshots": self._removed.get(request["id"], [])})

    def told(self, job: Row, state: str) -> Row:
        ids = self._removed.get(job["id"], [job["snapshot_id"]])
        reason = {"code": "cancelled", "details": {}, "message": "Cancelled by admin.", "hint": ""}
        names = {"vm_id": job["vm_id"], "disk_id": GHOST, "merge_id": GHOST}
        items = [
            {
                **names,
                "snapshot_id": id,
                "description": "",
                "state": state,
                "reason": reason if state == "undone" else None,
            }
            for id in ids
        ]
        sizes = {"bytes_to_copy": GIB, "space_needed": GIB, "space_returned": 0}
        merge = {**sizes, "id": GHOST, "vm_id": job["vm_id"], "position": 1, "snapshot_ids": ids, "layers": len(ids)}
        merge |= dict.fromkeys(("disk_id", "host_id", "domain_id", "base_id", "top_id"), GHOST)
        merge |= {"kind": "active", "direction": "commit", "why": "One layer.", "state": state, "step": "plan"}
        return {
            **{name: job[name] for name in ("id", "description", "user")},
            **dict.fromkeys(("reason", "action", "finished_at")),
            **{"state": state, "snapshot_count": len(ids), "cancellable": state == "running", "created_at": NOW},
            **{"progress": {"cur": 0, "end": GIB, "rate": 0}, "items": items, "merges": [merge]},
            "domains": [{**sizes, "domain_id": GHOST, "merges": 1}],
        }
