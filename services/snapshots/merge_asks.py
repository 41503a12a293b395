"""What the flow of a merge asks the VM's agent, in the words of its promises. Pure."""

from __future__ import annotations

from typing import Any

from chassis.steps import Flow
from contracts import hostagent
from contracts.promise import Rpc
from services.snapshots import peers
from services.snapshots.store_jobs import MergeRow


def start(row: MergeRow) -> Rpc:
    return hostagent.start_pull if row.pull else hostagent.start_commit


def disk(row: MergeRow) -> dict[str, Any]:
    return peers.disk_ref(row.disk_id, row.domain_id, row.domain_path)


def merge(flow: Flow, row: MergeRow) -> dict[str, Any]:
    """contracts.hostagent.MergeAsk or PullAsk."""
    third = {"below_id": row.below_id} if row.pull else {}
    return {**_whose(flow, row), **third, "child_id": row.child_id, "between": row.between}


def offline(flow: Flow, row: MergeRow, lease: dict[str, Any]) -> dict[str, Any]:
    """contracts.hostagent.MergeOffline."""
    way = {"pull": row.pull, "below_id": row.below_id if row.pull else None}
    return {**merge(flow, row), **way, "bandwidth": row.bandwidth, "lease": lease}


def cancel(flow: Flow, row: MergeRow) -> dict[str, Any]:
    """contracts.hostagent.CancelJob."""
    return {**_whose(flow, row), "child_id": row.child_id, "pull": row.pull}


def _whose(flow: Flow, row: MergeRow) -> dict[str, Any]:
    ends = {"base_id": row.base_id, "top_id": row.top_id}
    return {"vm_id": row.vm_id, "disk": disk(row), **ends, "claim": peers.claim_of(flow)}
