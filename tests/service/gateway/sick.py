"""A fake doctor behind the gateway: a disk differs while a test says so, and a repair heals it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts import errors

Row = dict[str, Any]
VIEWS = ("path", "backing_id", "parent_id", "known_parent_id", "snapshot_id")
LOST = "Snapshot 'before' names a volume that is gone."


class Doctor:
    """`sick`: differences by disk id. `get`: how to find a row of inventory."""

    def __init__(self, get: Callable[[str, Row], Row], rows: dict[str, dict[str, Row]]) -> None:
        self._get, self._rows = get, rows
        self.sick: dict[str, list[Row]] = {}

    def falls_ill(self, disk_id: str, code: str = "snapshot_lost") -> None:
        action = f"drystone doctor disk {disk_id} --repair"
        self.sick[disk_id] = [{"code": code, "volume_id": None, "message": LOST, "action": action}]

    def diagnose(self, request: Row) -> Row:
        disk = self._get("disk", {"id": request["disk_id"]})
        volume = {"volume_id": disk["first_volume_id"], "qemu": "writes", "libvirt": "writes", "storage": "leaf"}
        views = {**dict.fromkeys(VIEWS), **volume, "database": "active", "actual_size": 4096, "description": ""}
        found = self.sick.get(disk["id"], [])
        busy = any(one["code"] == "busy" for one in found)
        changes = ["Database: snapshot 'before' is forgotten."] if found and not busy else []
        plan = {"possible": not busy, "reason": "A job works on it." if busy else None, "changes": changes}
        return {
            **{key: disk[key] for key in ("alias", "vm_id", "domain_id")},
            **{"disk_id": disk["id"], "host_id": None, "qemu": "running", "libvirt": "running"},
            "rows": [views],
            "differences": found,
            "repair": plan | {"adopt": [], "discard": []},
            "digest": f"digest-{len(found)}",
        }

    def repair(self, request: Row) -> Row:
        found = self.diagnose(request)
        if not found["repair"]["possible"]:
            raise errors.DiskBusy(disk_id=request["disk_id"], flow_id="job-1")
        if request["expect"] != found["digest"] and found["differences"]:
            raise errors.DiagnosisChanged(disk_id=request["disk_id"], expect=request["expect"])
        self.sick.pop(request["disk_id"], None)
        changes = found["repair"]["changes"]
        return {"disk_id": request["disk_id"], "changes": changes, "diagnosis": self.diagnose(request)}

    def diagnose_domain(self, request: Row) -> Row:
        """One disk a page, so that a client has to turn pages."""
        domain = self._get("storage_domain", {"id": request["id"]})
        disks = [disk for disk in self._rows["disk"].values() if disk["domain_id"] == domain["id"]]
        at = int(request["after"]) if (request["after"] or "").isdecimal() else 0
        items = [
            {**{key: disk[key] for key in ("alias", "vm_id")}, "disk_id": disk["id"], "repairable": True}
            | {"differences": self.sick[disk["id"]]}
            for disk in disks[at : at + 1]
            if disk["id"] in self.sick
        ]
        following = str(at + 1) if at + 1 < len(disks) else None
        shown = {"domain_id": domain["id"], "looked_at": 1, "items": items, "findings": [], "findings_total": 0}
        return {**shown, "next": following, "total": len(disks)}
