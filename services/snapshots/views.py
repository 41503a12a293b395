"""A removal as it is told: contracts.snapshots.Removal, of a draft or of what was begun."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

from chassis import clock
from services.snapshots import jobs, planning, store_jobs, store_removals
from services.snapshots.desk import Desk
from services.snapshots.draft import Draft
from services.snapshots.plan import MergePlan
from services.snapshots.planning import Planned
from services.snapshots.store_jobs import JobRow, MergeRow

Told = dict[str, Any]


def planned(desk: Desk, job_id: str, draft: Draft) -> Told:
    """What would be done."""
    ids = {one: merge_id(job_id, one) for one in draft.merges}
    of = {wanted: ids[one] for one in draft.merges for wanted in one.wanted}
    items = [
        {
            **{name: getattr(one, name) for name in ("snapshot_id", "disk_id", "vm_id", "description")},
            "merge_id": of.get(one),
            "state": "refused" if one in draft.refused else "planned",
            "reason": jobs.reason(draft.refused[one].to_wire()) if one in draft.refused else None,
        }
        for one in draft.wanted
    ]
    return {
        **{"id": job_id, "state": "planned", "description": draft.description, "user": jobs.user()},
        "snapshot_count": len({one.snapshot_id for one in draft.wanted}),
        "progress": {
            "cur": 0,
            "end": sum(one.plan.copy for one in draft.merges),
            "rate": 0,
            "behind": False,
            "offline": False,
        },
        **dict.fromkeys(("reason", "action", "created_at", "finished_at")),
        "cancellable": False,
        "items": items,
        "merges": [_merge(ids[one], one, "planned", "plan") for one in draft.merges],
        "domains": _domains(desk, draft.merges),
    }


def merge_id(removal_id: str, one: Planned) -> str:
    """It follows from the removal's: the same request makes the same merges."""
    return jobs.part_id(removal_id, one.plan.disk_id, one.position)


def begun(desk: Desk, session: Session, job: JobRow) -> Told:
    """What is being done, or was done."""
    parts = {part.id: part for part in store_jobs.children(session, job.id)}
    merges = store_jobs.merges_of(session, job.id)
    items = store_removals.items(session, job.id)
    planned = {row.id: _of_row(row) for row in merges}
    removes = store_removals.snapshots_of(session, parts)
    rows = [_merge(row.id, planned[row.id], parts[row.id].state, parts[row.id].step) for row in merges]
    return {
        **{name: getattr(job, name) for name in ("id", "state", "description", "user", "action")},
        "snapshot_count": len({item.snapshot_id for item in items}),
        "progress": jobs.progress_of(job),
        "reason": jobs.reason(job.reason),
        "cancellable": jobs.cancellable(session, job),
        "items": [_item(item, parts.get(item.merge_id or "")) for item in items],
        "merges": [row | {"snapshot_ids": removes[row["id"]]} for row in rows],
        "domains": _domains(desk, planned.values()),
        "created_at": clock.iso(job.created_at),
        "finished_at": clock.iso(job.finished_at) if job.finished_at else None,
    }


def _item(item: store_removals.Item, part: JobRow | None) -> Told:
    names = ("snapshot_id", "disk_id", "vm_id", "description", "merge_id")
    wire = part.reason if part is not None else item.refusal
    fate = {"state": part.state if part is not None else "refused", "reason": jobs.reason(wire)}
    return {**{name: getattr(item, name) for name in names}, **fate}


def _of_row(row: MergeRow) -> Planned:
    return Planned(row.plan, (), row.host_id, row.domain_id, row.domain_path, row.reserve, row.position)


def _merge(id_: str, one: Planned, state: str, step: str) -> Told:
    plan: MergePlan = one.plan
    return {
        **{"id": id_, "vm_id": plan.vm_id, "disk_id": plan.disk_id, "host_id": one.host_id, "domain_id": one.domain_id},
        **{"position": one.position, "snapshot_ids": [wanted.snapshot_id for wanted in one.wanted]},
        **{"base_id": plan.base_id, "top_id": plan.top_id, "layers": len(plan.dropped), "kind": plan.kind},
        **{
            "direction": plan.direction,
            "bytes_to_copy": plan.copy,
            "space_needed": plan.needs,
            "space_returned": plan.returns,
        },
        **{"why": planning.why(plan), "state": state, "step": step},
    }


def _domains(desk: Desk, merges: Iterable[Planned]) -> list[Told]:
    limits = (desk.settings.merges_per_host, desk.settings.merges_per_domain)
    return [
        {
            **{"domain_id": domain_id, "merges": one.merges, "bytes_to_copy": one.copy},
            **{"space_needed": one.needs, "space_returned": one.returns},
        }
        for domain_id, one in planning.sums(merges, *limits).items()
    ]
