"""The rules of a new snapshot, whose new volumes become the leaves: facts in, decision out. No I/O."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from services.snapshots.chain import Do, Verdict
from services.snapshots.facts import DiskFacts


@dataclass(frozen=True)
class Leaf:
    """One disk of a new snapshot: `volume_id` is put on `parent_id`."""

    disk_id: str
    volume_id: str
    parent_id: str


def switched(leaf: Leaf, facts: DiskFacts) -> Verdict:
    """Is the new volume the leaf, on the storage and for a living QEMU?"""
    if facts.unknown:
        return Verdict(Do.UNKNOWN, facts.unknown)
    if leaf.volume_id not in facts.storage.volumes:
        return Verdict(Do.ASK, "the new volume does not exist")
    if facts.qemu.alive and facts.qemu.leaf != leaf.volume_id:
        return Verdict(Do.ASK, "QEMU writes to the old volume")
    if facts.storage.leaf != leaf.volume_id:
        return Verdict(Do.ASK, "the new volume is not yet the leaf on the storage")
    if facts.qemu.alive and facts.libvirt.chain[:1] != (leaf.volume_id,):
        return Verdict(Do.UNKNOWN, "libvirt's XML does not name the new volume yet")
    return Verdict(Do.GO_ON, "the new volume is the leaf")


class Left(enum.Enum):
    """What an unfinished create left behind on one disk."""

    NOTHING = "nothing"
    UNUSED = "unused"  # the new volume exists, and QEMU's own monitor shows that it is not used
    LEAF = "leaf"  # it is in use, or may be the next start's leaf: the create goes forward


def left(leaf: Leaf, facts: DiskFacts) -> Left:
    """An empty overlay over the old leaf is right whether or not QEMU switched; so it goes only when a living QEMU
    is seen to run without it, or when its deletion has begun: its data is gone (it names no volume below), or it is
    marked. Call it with facts that are not `unknown`."""
    there = facts.storage.volumes.get(leaf.volume_id)
    if there is None:
        return Left.NOTHING
    if going(leaf, facts):
        return Left.UNUSED
    if facts.qemu.alive and leaf.volume_id not in facts.qemu.chain and leaf.parent_id in facts.qemu.chain:
        return Left.UNUSED
    return Left.LEAF


def going(leaf: Leaf, facts: DiskFacts) -> bool:
    """Whether the deletion of the new volume has begun: nothing can stand on what is left of it."""
    there = facts.storage.volumes.get(leaf.volume_id)
    if there is None or leaf.volume_id in facts.qemu.chain:
        return False
    return there.legality == "illegal" or there.backing_id is None


def torn(seen: Iterable[tuple[Leaf, DiskFacts]]) -> bool:
    """Whether a living QEMU uses some of the new volumes and not the others. It switches all of them at one instant: so
    it was started on some, and the disks of this snapshot are not of one instant any more."""
    used = {leaf.volume_id in facts.qemu.chain for leaf, facts in seen if facts.qemu.alive}
    return len(used) > 1
