"""Fake inventory and snapshots behind a real gateway: every request and reply goes through the contracts' schemas.

They keep rows in memory and know the rules that HTTP shows: unknown ids, versions, ids used twice. Jobs move one
look at a time, so that tests need no clock.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

from contracts import errors, inventory, snapshots
from contracts.promise import Rpc
from tests.fakes.bus import Bus
from tests.service.gateway.removals import Removals
from tests.service.gateway.shelf import Shelf
from tests.service.gateway.sick import Doctor

Row = dict[str, Any]
NOW = "2026-01-02T03:04:05.678Z"
GIB = 2**30
STEPS = ("prepare", "merge", "finish")
_DEFAULTS: dict[str, Row] = {
    "data_center": {},
    "cluster": {},
    "host": dict.fromkeys(("problem", "facts", "boot_id", "clock_offset", "last_seen")) | {"state": "new"},
    "storage_domain": {"type": "file", "layout": 5, "state": "active", "problem": None, "total": 8 * GIB, "free": GIB},
    "disk": {"state": "ok", "problem": None, "first_volume_id": "11111111-1111-4111-8111-111111111111"},
    "vm": {"state": "down", "reason": "", "host_id": None, "disks": []},
    "template": {"state": "ok", "problem": None},
}
_LEFT_OUT: Row = {"cpus": 1, "firmware": "bios", "display": "vnc", "boot": None, "nics": []}
_HARDWARE = ("memory", "cpus", "firmware", "display", "boot")
_TEMPLATES = ("cluster_id", "data_center_id", *_HARDWARE)


# budget: two whole services in memory, a few lines for each promise
class World:
    """`rows` by kind and id; a test may put anything there."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row]] = {kind: {} for kind in (*_DEFAULTS, "snapshot", "job", "merge")}
        self.bodies: dict[str, Row] = {}
        self.removals = Removals(self)
        self.asked: list[tuple[str, Row]] = []
        self.doctor = Doctor(self.get, self.rows)
        self.shelf = Shelf(self.get)
        self._lock = threading.RLock()

    def serve(self, bus: Bus, *services: str) -> None:
        for promise, fn in self._promises():
            if promise.service in services:
                bus.answer(promise, self._noted(promise, fn))

    def put(self, kind: str, /, **fields: Any) -> Row:
        row = {"version": 1, "created_at": NOW, "description": "", **_DEFAULTS.get(kind, {}), **fields}
        self.rows[kind][row["id"]] = row
        return row

    def _noted(self, promise: Rpc, fn: Callable[[Row], Row]) -> Callable[[Row], Row]:
        def answer(request: Row) -> Row:
            with self._lock:
                self.asked.append((promise.method, request))
                return fn(request)

        return answer

    def _promises(self) -> list[tuple[Rpc, Callable[[Row], Row]]]:
        pairs: list[tuple[Rpc, Callable[[Row], Row]]] = []
        for kind in _DEFAULTS:
            for verb in ("create", "change", "delete"):
                promise = getattr(inventory, f"{verb}_{kind}", None)
                if promise is not None:
                    pairs.append((promise, self._bound(getattr(self, f"_{verb}"), kind)))
        for kind in self.rows:
            owner: Any = inventory if kind in _DEFAULTS else snapshots
            pairs.append((getattr(owner, f"list_{kind}s"), self._bound(self._list, kind)))
            if kind != "job":
                look = self._look_at_copies if kind in ("vm", "template") else self.get
                pairs.append((getattr(owner, f"get_{kind}"), self._bound(look, kind)))
        return pairs + self._verbs()

    def _verbs(self) -> list[tuple[Rpc, Callable[[Row], Row]]]:
        return [
            (inventory.plug_disk, self._bound(self._change, "disk")),
            (inventory.start_vm, lambda r: self._power(r, "running")),
            (inventory.shut_down_vm, lambda r: self._power(r, "shutting_down")),
            (inventory.power_off_vm, lambda r: self._power(r, "down")),
            (snapshots.get_chain, self._chain),
            (snapshots.diagnose_disk, self.doctor.diagnose),
            (snapshots.repair_disk, self.doctor.repair),
            (snapshots.diagnose_domain, self.doctor.diagnose_domain),
            (snapshots.list_disk_snapshots, self.shelf.list_disk_snapshots),
            (snapshots.list_leftovers, self.shelf.list_leftovers),
            (snapshots.rebuild_overview, self.shelf.rebuild),
            (snapshots.create_snapshot, lambda r: self.job(r, "snapshot", r["vm_id"])),
            (snapshots.remove_snapshot, self._remove),
            (snapshots.remove_snapshots, self.removals.begin),
            (snapshots.retry_removal, self.removals.retry),
            (snapshots.get_removal, lambda r: self.removals.told(self.get("job", r), "running")),
            (snapshots.cancel_removal, lambda r: self.removals.told(self._cancel(r), "undone")),
            (snapshots.get_job, self._look_at_job),
            (snapshots.cancel_job, self._cancel),
            (snapshots.resume_job, lambda r: self.get("job", r)),
            (snapshots.limit_job, lambda r: self.get("job", r)),
        ]

    @staticmethod
    def _bound(fn: Callable[[str, Row], Row], kind: str) -> Callable[[Row], Row]:
        return lambda request: fn(kind, request)

    def get(self, kind: str, request: Row) -> Row:
        if request["id"] not in self.rows[kind]:
            raise errors.NotFound(kind=kind, id=request["id"])
        return self.rows[kind][request["id"]]

    def _list(self, kind: str, request: Row) -> Row:
        wanted = {k: v for k, v in request.items() if k not in ("after", "limit") and v is not None}
        rows = [row for row in self.rows[kind].values() if all(row.get(k) == v for k, v in wanted.items())]
        start = int(request["after"]) if (request["after"] or "").isdecimal() else 0
        end = start + request["limit"]
        return {"items": rows[start:end], "next": str(end) if end < len(rows) else None, "total": len(rows)}

    def _create(self, kind: str, request: Row) -> Row:
        id = request["id"]
        if self.bodies.setdefault(id, request) != request:
            raise errors.IdempotencyConflict(id=id)
        if id in self.rows[kind]:
            return self.rows[kind][id]
        fields = dict(request)
        if kind == "vm":
            cluster = self.rows["cluster"].get(request["cluster_id"])
            if cluster is None:
                raise errors.NotFound(kind="cluster", id=request["cluster_id"])
            base = self.get("template", {"id": request["template_id"]}) if request["template_id"] else None
            fields |= _left_out(request, base) | {"data_center_id": cluster["data_center_id"]}
            fields["nics"] = [nic | {"mac": nic["mac"] or "56:6f:1a:00:00:01"} for nic in fields["nics"]]
            fields["disks"] = [_clone(disk, request) for disk in base["disks"]] if base else []
        if kind == "template":
            vm = self.get("vm", {"id": request["vm_id"]})
            if vm["state"] != "down":
                raise errors.VmWrongState(vm_id=vm["id"], state=vm["state"], action="making it", needs="down")
            fields |= {name: vm[name] for name in _TEMPLATES} | {"nics": [], "state": "creating"}
            fields["disks"] = [_copy(disk, id, template_id=id) for disk in vm["disks"]]
        return self.put(kind, **fields)

    def _look_at_copies(self, kind: str, request: Row) -> Row:
        """Copies move with every look; those of a disk called 'bad' end badly."""
        row = self.get(kind, request)
        for disk in (disk for disk in row["disks"] if disk["state"] == "creating"):
            _go_on(disk)
        if kind == "template" and row["state"] == "creating":
            left = {disk["state"] for disk in row["disks"]}
            row["state"] = "creating" if "creating" in left else "failed" if "failed" in left else "ok"
        return row

    def _change(self, kind: str, request: Row) -> Row:
        row = self._versioned(kind, request)
        row.update({k: v for k, v in request.items() if k != "version" and (v is not None or k == "vm_id")})
        row["version"] += 1
        return row

    def _delete(self, kind: str, request: Row) -> Row:
        self._versioned(kind, request)
        del self.rows[kind][request["id"]]
        return {"id": request["id"]}

    def _versioned(self, kind: str, request: Row) -> Row:
        row = self.get(kind, request)
        if row["version"] != request["version"]:
            raise errors.VersionMismatch(kind=kind, id=row["id"], has=row["version"], named=request["version"])
        return row

    def _power(self, request: Row, state: str) -> Row:
        row = self.get("vm", request)
        if state == "running" and row["state"] == "running":
            raise errors.VmWrongState(vm_id=row["id"], state="running", action="start", needs="down")
        row.update(state=state, version=row["version"] + 1)
        return row

    def _chain(self, request: Row) -> Row:
        disk = self.get("disk", {"id": request["disk_id"]})
        leaf = {"volume_id": disk["first_volume_id"], "parent_id": None, "snapshot_id": None, "description": ""}
        volumes = [leaf | {"active": True, "actual_size": 4096}]
        return {"disk_id": disk["id"], "vm_id": disk["vm_id"], "volumes": volumes, "facts": None}

    def _remove(self, request: Row) -> Row:
        snapshot = self.get("snapshot", request)
        return self.job(request, "removal", snapshot["vm_id"])

    def job(self, request: Row, kind: str, vm_id: str) -> Row:
        """Its progress moves with every look."""
        if vm_id not in self.rows["vm"]:
            raise errors.NotFound(kind="vm", id=vm_id)
        if self.bodies.setdefault(request["job_id"], request) != request:
            raise errors.IdempotencyConflict(id=request["job_id"])
        return self.rows["job"].get(request["job_id"]) or self.put(
            "job",
            id=request["job_id"],
            kind=kind,
            parent_id=None,
            vm_id=vm_id,
            snapshot_id=request["id"],
            disk_id=None,
            user="admin",
            state="running",
            step=STEPS[0],
            steps=[{"name": name, "state": "waiting"} for name in STEPS],
            progress={"cur": 0, "end": 3 * GIB, "rate": 0},
            reason=None,
            action=None,
            cancellable=True,
            result=None,
            finished_at=None,
        )

    def _look_at_job(self, request: Row) -> Row:
        job = self.get("job", request)
        if job["state"] != "running":
            return job
        job["version"] += 1
        passed = min(job["version"] - 1, len(STEPS))
        job["progress"] = {"cur": passed * GIB, "end": 3 * GIB, "rate": GIB}
        job["step"] = STEPS[min(passed, len(STEPS) - 1)]
        if passed == len(STEPS):
            self._end(job)
        return job

    def _end(self, job: Row) -> None:
        """A description may say how: 'fail' and 'stick'."""
        reason = {"code": "no_space", "details": {}, "message": "The storage is full.", "hint": "Free space."}
        how = {"fail": "undone", "stick": "stuck"}.get(self.bodies[job["id"]].get("description", ""), "done")
        job.update(state=how, finished_at=NOW, reason=reason if how != "done" else None)
        job["action"] = "Free 4 GiB on the domain." if how == "stuck" else None

    def _cancel(self, request: Row) -> Row:
        job = self.get("job", request)
        if job["state"] != "running":
            raise errors.TooLate(flow_id=job["id"])
        job.update(state="undone", version=job["version"] + 1, finished_at=NOW)
        return job


def _left_out(request: Row, template: Row | None) -> Row:
    """A VM's hardware with what was left out."""
    if not (request["memory"] or template):
        raise errors.BadRequest(errors={"memory": ["Missing data for required field."]})
    base = template or _LEFT_OUT
    return {name: base.get(name) if request[name] is None else request[name] for name in (*_HARDWARE, "nics")}


def _clone(disk: Row, request: Row) -> Row:
    origin = {"thin": "thin", "full": "copy"}[request["clone"]]
    return _copy(disk, request["id"], origin=origin, vm_id=request["id"])


def _copy(disk: Row, whole: str, **other: Any) -> Row:
    """A disk that is being made from another one."""
    own = {"id": str(uuid.uuid5(uuid.UUID(whole), disk["id"])), "source_disk_id": disk["id"], "vm_id": None}
    copying = {"origin": "copy", "state": "creating", "copied": 0, "to_copy": 3 * GIB}
    return {**disk, **own, **copying, "template_id": None, **other}


def _go_on(disk: Row) -> None:
    disk["copied"] += GIB
    if disk["copied"] >= disk["to_copy"]:
        bad = disk["alias"] == "bad"
        disk.update(state="failed" if bad else "ok", problem="The storage is full." if bad else None)
