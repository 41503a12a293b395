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


def raise_to(journal: Journal, disk_id: str, claim: Claim) -> None:
    """Remember this claim; StaleClaim if a higher one is known."""
    known = _known(journal, disk_id, claim)
    if claim["number"] < known["number"]:
        raise errors.StaleClaim(claim=claim["number"], highest=known["number"], disk_id=disk_id)
    if claim["number"] > known["number"]:
        _keep(journal, disk_id, claim, {**known, "number": claim["number"]})
        highest = _known(journal, disk_id, claim)["number"]  # a newer one may have come between the look and the write
        if claim["number"] < highest:
            raise errors.StaleClaim(claim=claim["number"], highest=highest, disk_id=disk_id)


def take(journal: Journal, disk_id: str, claim: Claim) -> None:
    """As `raise_to`, for an ask that changes the chain: also refused when the flow was cancelled since."""
    raise_to(journal, disk_id, claim)
    cancelled = _known(journal, disk_id, claim)["cancelled"]
    if claim["number"] <= cancelled:
        raise errors.StaleClaim(claim=claim["number"], highest=cancelled + 1, disk_id=disk_id)


def cancel(journal: Journal, disk_id: str, claim: Claim) -> None:
    """Refuse this flow's later asks up to this number."""
    raise_to(journal, disk_id, claim)
    known = _known(journal, disk_id, claim)
    if known["cancelled"] < claim["number"]:
        _keep(journal, disk_id, claim, {**known, "cancelled": claim["number"]})


def _known(journal: Journal, disk_id: str, claim: Claim) -> dict[str, int]:
    flows = journal.get("claims", disk_id) or {}
    return dict(flows.get(claim["flow_id"]) or {"number": 0, "cancelled": 0})


def _keep(journal: Journal, disk_id: str, claim: Claim, entry: dict[str, int]) -> None:
    """Numbers only rise, whoever writes last: compared and kept under the journal's lock."""

    def edit(disks: dict[str, Any]) -> None:
        flows = disks.setdefault(disk_id, {})
        had = flows.pop(claim["flow_id"], None) or {"number": 0, "cancelled": 0}
        flows[claim["flow_id"]] = {name: max(had[name], entry[name]) for name in had}
        for old in list(flows)[:-FLOWS_PER_DISK]:
            del flows[old]

    journal.change("claims", edit)
