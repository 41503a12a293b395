"""Looks at one disk for tables of tests: a chain v1 <- v2 <- v3 of a running VM, changed as a test says.

look() is quiet; look(job=job(...)), look(qemu=["v3", "v1"]), look(gone=True), look(headers={"v3": "v1"}) ...
"""

from __future__ import annotations

import dataclasses
from typing import Any

from services.snapshots.facts import DiskFacts, Job, Libvirt, Qemu, Storage, Volume
from services.snapshots.plan import MergePlan

GIB = 2**30
CHAIN = ("v1", "v2", "v3")
INTERNAL = MergePlan("vm", "disk", "v1", "v2", "v3", copy=GIB, needs=GIB)
ACTIVE = MergePlan("vm", "disk", "v2", "v3", None, copy=GIB, needs=GIB)


def volume(volume_id: str, parent: str | None, **other: Any) -> Volume:
    bare = Volume(volume_id, parent, parent, "cow", 10 * GIB, GIB, "legal", "internal", pulls=True)
    return dataclasses.replace(bare, **other)


def job(plan: MergePlan, cur: int = 0, end: int = GIB, *, ready: bool = False, **other: Any) -> Job:
    """The job of a plan, as QEMU's monitor shows it."""
    bare = Job("commit", "ready" if ready else "running", ready, cur, end, 0, plan.base_id, plan.top_id, plan.child_id)
    return dataclasses.replace(bare, **other)


def look(
    *,
    qemu: list[str | None] | None = None,
    libvirt: list[str | None] | None = None,
    job: Job | None = None,
    libvirt_job: Job | None = None,
    mirror: bool = False,
    mirror_ready: bool = False,
    state: str = "running",
    gone: bool = False,
    volumes: list[Volume] | None = None,
    leaf: str | None = "v3",
    headers: dict[str, str | None] | None = None,
    illegal: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    free: int = 100 * GIB,
    unsure: str | None = None,
    problem: str | None = None,
    paused_by_pivot: bool = False,
    offline: Job | None = None,
) -> DiskFacts:
    chain: tuple[str | None, ...] = tuple(qemu if qemu is not None else reversed(CHAIN))
    chain = () if gone else chain
    xml: tuple[str | None, ...] = () if gone else tuple(libvirt) if libvirt is not None else chain
    rows = volumes if volumes is not None else [volume("v1", None), volume("v2", "v1"), volume("v3", "v2")]
    rows = [_marked(row, headers or {}, illegal) for row in rows if row.volume_id not in without]
    return DiskFacts(
        vm_id="vm",
        disk_id="disk",
        qemu=Qemu("absent" if gone else state, chain, tuple(f"/images/{id_}" for id_ in chain), job),
        libvirt=Libvirt("absent" if gone else "running", xml, mirror, mirror_ready, libvirt_job),
        storage=Storage({row.volume_id: row for row in rows}, leaf, problem, free),
        unsure=unsure,
        paused_by_pivot=paused_by_pivot,
        offline=offline,
    )


def _marked(row: Volume, headers: dict[str, str | None], illegal: tuple[str, ...]) -> Volume:
    backing = headers.get(row.volume_id, row.backing_id)
    legality = "illegal" if row.volume_id in illegal else row.legality
    return dataclasses.replace(row, backing_id=backing, legality=legality)
