"""What the API answers with. Sizes are bytes, times ISO 8601 in UTC, ids lower-case UUIDs.

A test compares these with the API's own description, so that they can't drift.
"""

from __future__ import annotations

from typing import Any, TypedDict


class DataCenter(TypedDict):
    id: str
    name: str
    description: str
    mac_first: str
    mac_last: str
    leases: bool
    io_timeout: int
    version: int
    created_at: str


class Cluster(TypedDict):
    id: str
    name: str
    data_center_id: str
    description: str
    version: int
    created_at: str


class Host(TypedDict):
    id: str
    name: str
    cluster_id: str
    state: str
    problem: str | None
    facts: dict[str, Any] | None
    boot_id: str | None
    clock_offset: float | None
    last_seen: str | None
    sanlock_id: int | None
    lockspaces: list[dict[str, Any]]
    version: int
    created_at: str


class StorageDomain(TypedDict):
    id: str
    name: str
    data_center_id: str
    path: str
    type: str
    layout: int
    state: str
    problem: str | None
    total: int | None
    free: int | None
    version: int
    created_at: str


class Disk(TypedDict):
    id: str
    alias: str
    domain_id: str
    capacity: int
    format: str
    first_volume_id: str
    vm_id: str | None
    bus: str
    boot_order: int | None
    template_id: str | None
    origin: str
    source_disk_id: str | None
    copied: int | None
    to_copy: int | None
    state: str
    problem: str | None
    version: int
    created_at: str


class Nic(TypedDict):
    id: str
    name: str
    mac: str
    model: str
    network: str | None
    linked: bool


class Vm(TypedDict):
    id: str
    name: str
    cluster_id: str
    data_center_id: str
    description: str
    memory: int
    cpus: int
    firmware: str
    display: str
    boot: dict[str, Any] | None
    nics: list[Nic]
    disks: list[Disk]
    state: str
    reason: str
    host_id: str | None
    lease_domain_id: str | None
    template_id: str | None
    version: int
    created_at: str


class TemplateNic(TypedDict):
    name: str
    model: str
    network: str | None
    linked: bool


class Template(TypedDict):
    id: str
    name: str
    cluster_id: str
    data_center_id: str
    vm_id: str
    description: str
    memory: int
    cpus: int
    firmware: str
    display: str
    boot: dict[str, Any] | None
    nics: list[TemplateNic]
    disks: list[Disk]
    state: str
    problem: str | None
    version: int
    created_at: str


class SnapshotDisk(TypedDict):
    disk_id: str
    alias: str
    volume_id: str
    actual_size: int | None


class Snapshot(TypedDict):
    id: str
    vm_id: str
    description: str
    state: str
    restorable: bool
    partly_removed: bool
    quiesced: bool
    live: bool
    disks: list[SnapshotDisk]
    job_id: str | None
    version: int
    created_at: str


class Progress(TypedDict):
    cur: int
    end: int
    rate: int
    behind: bool
    offline: bool


class Reason(TypedDict):
    code: str
    details: dict[str, Any]
    message: str
    hint: str


class JobStep(TypedDict):
    name: str
    state: str


class Job(TypedDict):
    id: str
    kind: str
    parent_id: str | None
    vm_id: str | None
    snapshot_id: str | None
    disk_id: str | None
    user: str
    description: str
    state: str
    step: str
    steps: list[JobStep]
    progress: Progress
    reason: Reason | None
    action: str | None
    cancellable: bool
    result: dict[str, Any] | None
    version: int
    created_at: str
    finished_at: str | None


class Merge(TypedDict):
    id: str
    removal_id: str
    vm_id: str
    disk_id: str
    snapshot_ids: list[str]
    base_id: str
    top_id: str
    layers: int
    kind: str
    state: str
    step: str
    progress: Progress
    bytes_merged: int
    bytes_returned: int
    stall: dict[str, float] | None
    reason: Reason | None
    version: int


class RemovalItem(TypedDict):
    snapshot_id: str
    disk_id: str
    vm_id: str
    description: str
    merge_id: str | None
    state: str
    reason: Reason | None


class RemovalMerge(TypedDict):
    id: str
    vm_id: str
    disk_id: str
    host_id: str
    domain_id: str
    position: int
    snapshot_ids: list[str]
    base_id: str
    top_id: str
    layers: int
    kind: str
    direction: str
    bytes_to_copy: int
    space_needed: int
    space_returned: int
    why: str
    state: str
    step: str


class RemovalDomain(TypedDict):
    domain_id: str
    merges: int
    bytes_to_copy: int
    space_needed: int
    space_returned: int


class Removal(TypedDict):
    """`state` is planned for the answer to a dry run: nothing was begun."""

    id: str
    state: str
    description: str
    user: str
    snapshot_count: int
    progress: Progress
    reason: Reason | None
    action: str | None
    cancellable: bool
    items: list[RemovalItem]
    merges: list[RemovalMerge]
    domains: list[RemovalDomain]
    created_at: str | None
    finished_at: str | None


class ChainVolume(TypedDict):
    volume_id: str
    parent_id: str | None
    snapshot_id: str | None
    description: str
    active: bool
    actual_size: int | None


class Chain(TypedDict):
    disk_id: str
    vm_id: str | None
    volumes: list[ChainVolume]
    facts: dict[str, Any] | None


class VolumeViews(TypedDict):
    volume_id: str | None
    path: str | None
    qemu: str | None
    storage: str | None
    libvirt: str | None
    database: str | None
    backing_id: str | None
    parent_id: str | None
    known_parent_id: str | None
    actual_size: int | None
    snapshot_id: str | None
    description: str


class Difference(TypedDict):
    code: str
    volume_id: str | None
    message: str
    action: str


class RepairPlan(TypedDict):
    possible: bool
    reason: str | None
    changes: list[str]
    adopt: list[str]
    discard: list[str]


class Diagnosis(TypedDict):
    disk_id: str
    alias: str
    vm_id: str | None
    domain_id: str
    host_id: str | None
    qemu: str | None
    libvirt: str | None
    rows: list[VolumeViews]
    differences: list[Difference]
    repair: RepairPlan
    digest: str


class Repaired(TypedDict):
    disk_id: str
    changes: list[str]
    diagnosis: Diagnosis


class DiskFindings(TypedDict):
    disk_id: str
    alias: str
    vm_id: str | None
    differences: list[Difference]
    repairable: bool


class Finding(Difference):
    disk_id: str | None
    path: str | None


class DomainDiagnosis(TypedDict):
    domain_id: str
    looked_at: int
    items: list[DiskFindings]
    findings: list[Finding]
    findings_total: int
    next: str | None
    total: int


class News(TypedDict):
    """One event. `type` gap: some were missed, read the state again; only `message` comes with it."""

    id: str
    type: str
    source: str
    time: str
    user: str
    request_id: str
    entity: dict[str, Any]
    message: str


class Health(TypedDict):
    status: str
    services: list[dict[str, Any]]
    hosts: list[dict[str, Any]]
