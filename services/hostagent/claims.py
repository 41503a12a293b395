"""Who may ask: the highest claim number per disk and flow, and the flows that were cancelled.

A flow's owner that slept through its lease comes back with a lower number than its successor and is refused. A
cancel refuses every ask of its flow up to its own number: one that was sent before it and arrives after it too.
"""

from __future__ import annotations

from typing import Any

from contracts import errors
from services.hostagent.journal import Journal

FLOWS_PER_DISK = 32  # the oldest are forgotten first; a flow that old is long done

Claim = dict[str, Any]  # contracts.hostagent.Claim
_NONE = {"number": 0, "cancelled": 0}


def raise_to(journal: Journal, disk_id: str, claim: Claim) -> None:
    """Remember this claim; StaleClaim if a higher one is known. Compared and kept in one step."""
    if _known(journal, disk_id, claim)["number"] != claim["number"]:
        _keep(journal, disk_id, claim)


def take(journal: Journal, disk_id: str, claim: Claim) -> None:
    """As `raise_to`, for an ask that changes the chain: also refused when the flow was cancelled since."""
    raise_to(journal, disk_id, claim)
    cancelled = _known(journal, disk_id, claim)["cancelled"]
    if claim["number"] <= cancelled:
        raise errors.StaleClaim(claim=claim["number"], highest=cancelled + 1, disk_id=disk_id)


def cancel(journal: Journal, disk_id: str, claim: Claim) -> None:
    """Refuse this flow's later asks up to this number."""
    _keep(journal, disk_id, claim, cancelled=claim["number"])


def _known(journal: Journal, disk_id: str, claim: Claim) -> dict[str, int]:
    flows = journal.get("claims", disk_id) or {}
    return dict(flows.get(claim["flow_id"]) or _NONE)


def _keep(journal: Journal, disk_id: str, claim: Claim, cancelled: int = 0) -> None:
    """Raises StaleClaim and keeps nothing when a higher number is known: numbers only rise, whoever comes last."""

    def edit(disks: dict[str, Any]) -> None:
        flows = disks.setdefault(disk_id, {})
        had = flows.pop(claim["flow_id"], _NONE)
        if claim["number"] < had["number"]:
            raise errors.StaleClaim(claim=claim["number"], highest=had["number"], disk_id=disk_id)
        flows[claim["flow_id"]] = {"number": claim["number"], "cancelled": max(had["cancelled"], cancelled)}
        for old in list(flows)[:-FLOWS_PER_DISK]:
            del flows[old]

    journal.change("claims", edit)
