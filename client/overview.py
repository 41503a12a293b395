"""What the lists of a storage domain hold, as the API tells it."""

from __future__ import annotations

from typing import TypedDict


class DiskSnapshot(TypedDict):
    """One disk of one snapshot in the list of its storage domain; see contracts.overview."""

    volume_id: str
    snapshot_id: str
    disk_id: str
    domain_id: str
    vm_id: str | None
    vm_name: str
    alias: str
    description: str
    taken_at: str
    made_at: str | None
    size: int | None
    returns: int | None
    depth: int
    layers: int
    state: str
    removable: bool
    reason: str | None


class DiskSnapshots(TypedDict):
    """A page; `total`, `size` and `returns` are of the whole filter."""

    items: list[DiskSnapshot]
    next: str | None
    total: int
    size: int
    returns: int
    scanned_at: str | None


class Leftover(TypedDict):
    code: str
    message: str
    action: str
    disk_id: str | None
    volume_id: str | None
    path: str | None
    size: int | None


class Leftovers(TypedDict):
    items: list[Leftover]
    next: str | None
    total: int
    scanned_at: str | None


class RebuiltOverview(TypedDict):
    domain_id: str
    disks: int
    disk_snapshots: int
    leftovers: int
    scanned_at: str
