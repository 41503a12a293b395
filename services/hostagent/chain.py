"""Rules of a volume chain, on facts. Pure: no I/O.

A chain is read from two sources: the backing file in each qcow2 header (what QEMU follows) and the parent in each
`.meta` (what was recorded). The marks (LEGALITY) say which volumes still count.

The leaf rule (safety rule 3): at any instant the marks name exactly one leaf, which holds every acknowledged write.
The leaf is the one volume that counts and that no other such volume stands on, by its header or by its record. A
volume counts unless it is marked illegal, or passed over. Both count, because a merge changes them at different times:

    taking a snapshot    V1 <- V2          V2 is the leaf as soon as it exists: an empty overlay reads like V1
    active commit        B <- T            leaf T until T is marked illegal, while both read the same; then B
    internal commit      B <- T <- C       QEMU rewrites C's header to B; C's record still names T until the
                                           merge is recorded, so T never looks like a second leaf. Until then
                                           T holds everything, and B perhaps not yet (merging.py)
    a pull              P <- B <- T        QEMU rewrites T's header to P (or to nothing); T's record still names B. B is
                                           marked only when T's tables hold all of B (pulling.py); T is the leaf always
    a range in one job  B <- M <- T        the mark of T names its heir, B, in the same write: M between them is passed
                                           over from then on, so that it never looks like a leaf, and is marked later
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from contracts import errors

MAX_DEPTH = 10_000


@dataclass(frozen=True)
class Volume:
    """One volume as the storage has it. Sizes in bytes.

    `parent`: the record in `.meta`. `backing`: the volume that the header's name resolves to, `backing_name` the
    name itself; `elsewhere`: that volume lies in another image of the domain (a template). `heir`: the volume that a
    dropped range went into. `trouble`: why the files cannot be trusted. `created`: seconds since 1970. `image`: the
    image that the record names; a template's volume has a name (hard link) in every image that stands on it. `pulls`:
    it is qcow2 of version 3 and keeps no dirty bitmaps."""

    id: str
    parent: str | None = None
    backing: str | None = None
    backing_name: str | None = None
    elsewhere: bool = False
    format: str = "cow"
    capacity: int = 0
    actual_size: int = 0
    legality: str = "legal"
    volume_type: str = "leaf"
    heir: str | None = None
    created: int | None = None
    image: str | None = None
    pulls: bool = False
    trouble: errors.Problem | None = None

    def is_borrowed(self, disk_id: str) -> bool:
        """Whether it is a template's, and this disk merely stands on it."""
        return self.volume_type == "shared" and self.image not in {None, disk_id}


@dataclass(frozen=True)
class Verdict:
    """`leaf` or the `trouble` why there is none."""

    leaf: str | None
    trouble: errors.Problem | None = None


def find_leaf(disk_id: str, volumes: Collection[Volume]) -> Verdict:
    """The leaf that the marks name, if its whole chain is sound."""
    tips = find_tips(volumes)
    if len(tips) != 1:
        # A volume with unreadable metadata stands on nothing and so is a tip: then that is the reason.
        damaged = [v.trouble for v in volumes if v.id in tips and v.trouble is not None]
        several = errors.ChainBroken(disk_id=disk_id, reason=_no_single(tips, volumes))
        return Verdict(None, damaged[0] if damaged else several)
    tip = next(v for v in volumes if v.id == tips[0])
    if tip.is_borrowed(disk_id):
        reason = f"it has no volume of its own on the template's volume {tip.id}: its making was not finished"
        return Verdict(None, errors.ChainBroken(disk_id=disk_id, reason=reason))
    try:
        walk(disk_id, volumes, tips[0])
    except errors.Problem as problem:
        return Verdict(None, problem)
    return Verdict(tips[0])


def find_tips(volumes: Iterable[Volume]) -> list[str]:
    """The volumes that count and that no other one that counts stands on; sorted."""
    volumes = list(volumes)
    passed = passed_over(volumes)
    counting = {v.id: v for v in volumes if v.legality == "legal" and v.id not in passed}
    stood_on = {p for v in counting.values() for p in (v.parent, v.backing) if p != v.id}
    return sorted(set(counting) - stood_on)


def passed_over(volumes: Collection[Volume]) -> set[str]:
    """The volumes between a dropped top and its heir: they went down with it. Followed by record and by header, so that
    one of them being unreadable changes nothing."""
    by_id = {v.id: v for v in volumes}
    found: set[str] = set()
    for top in volumes:
        if top.legality == "illegal" and top.heir is not None:
            found.update(_down_to(by_id, top, {v.id: v.parent for v in volumes}))
            found.update(_down_to(by_id, top, {v.id: v.backing for v in volumes}))
    return found


def _down_to(by_id: Mapping[str, Volume], top: Volume, below: Mapping[str, str | None]) -> list[str]:
    """What lies between top and its heir by these steps; nothing where they do not lead there."""
    path: list[str] = []
    at = below[top.id]
    while at is not None and at != top.heir:
        if at in path or at not in by_id:
            return []
        path.append(at)
        at = below[at]
    return path if at is not None else []


def _no_single(tips: Sequence[str], volumes: Collection[Volume]) -> str:
    if tips:
        return f"the marks name {len(tips)} leaves: {', '.join(tips)}"
    if not volumes:
        return "its folder has no volume"
    if not any(v.legality == "legal" for v in volumes):
        return "every volume is marked illegal"
    return "its volumes stand on each other in a circle"


def walk(disk_id: str, volumes: Collection[Volume], leaf: str) -> tuple[str, ...]:
    """The chain as QEMU would open it, leaf first. ChainBroken or BackingOutside where it cannot be followed."""

    def broken(reason: str) -> errors.ChainBroken:
        return errors.ChainBroken(disk_id=disk_id, reason=reason)

    by_id = {v.id: v for v in volumes}
    path: list[str] = []
    at: str | None = leaf
    while at is not None:
        if at in path:
            raise broken(f"volume {at} stands on itself")
        volume = by_id.get(at)
        if volume is None:
            raise broken(f"volume {at} is missing" + (f"; {path[-1]} stands on it" if path else ""))
        if volume.trouble is not None:
            raise volume.trouble
        if volume.legality == "illegal":
            raise broken(f"volume {at} is marked illegal" + (f", yet {path[-1]} stands on it" if path else ""))
        path.append(at)
        if len(path) > MAX_DEPTH:
            raise broken(f"it has more than {MAX_DEPTH} volumes")
        at = None if volume.elsewhere else volume.backing
    return tuple(path)


def unrecorded(volumes: Iterable[Volume]) -> dict[str, str]:
    """Volumes whose header names something further down than their record: a merge changed it and was not recorded.
    Each with the volume of its record, which it can stand on again: it, and all down to what the header names, must
    count. (The mark of what goes is the first record of a merge; from then on it counts no more.)"""
    by_id = {v.id: v for v in volumes}
    found: dict[str, str] = {}
    for child in by_id.values():
        if child.trouble is None and child.legality == "legal" and not child.elsewhere and child.format == "cow":
            top = child.parent
            if top is not None and top != child.backing and _sound_down_to(by_id, top, child.backing):
                found[child.id] = top
    return found


def _sound_down_to(by_id: Mapping[str, Volume], top: str, base: str | None) -> bool:
    """Whether the headers lead from top to base (None: to the end of the chain), through volumes that count."""
    at: str | None = top
    for _ in range(len(by_id)):
        volume = by_id.get(at or "")
        if volume is None or volume.trouble is not None or volume.legality != "legal" or volume.elsewhere:
            return False
        if volume.backing == base:
            return base is None or base in by_id
        at = volume.backing
    return False


def left_behind(volumes: Mapping[str, Volume], child: str) -> list[str]:
    """The volumes that a merge or a pull nobody recorded left below this one's record: from there down to what its
    header names. They went into what it stands on, or into itself, if that was whole."""
    found: list[str] = []
    at = volumes[child].parent
    while at is not None and at != volumes[child].backing and at in volumes and at not in found:
        found.append(at)
        at = volumes[at].backing
    return found


def above(volumes: Mapping[str, Volume], ids: Sequence[str], unused: Collection[str]) -> list[str]:
    """Those of the `unused` volumes that stand on the leaf of this chain, by header or by record, directly or not."""
    left = {one for at in ids for one in left_behind(volumes, at)}
    below = {one: {volumes[one].parent, volumes[one].backing} for one in unused if one not in left}
    found, grown = {ids[0]}, True
    while grown:
        more = {one for one, stands_on in below.items() if one not in found and stands_on & found}
        found, grown = found | more, bool(more)
    return [one for one in unused if one in found]


def children(volumes: Iterable[Volume], volume_id: str) -> list[str]:
    """Who stands on a volume, by header or by record, whatever the marks; sorted."""
    return sorted(v.id for v in volumes if volume_id in {v.parent, v.backing} and v.id != volume_id)


def following(
    disk_id: str, volumes: Mapping[str, Volume], ids: Sequence[str], unused: Collection[str], *, live: bool
) -> dict[str, Volume]:
    """The volumes as they are once their records follow the headers along `ids` (leaf first) and the `unused` ones
    are marked illegal. `live`: a QEMU writes to ids[0], else the marks must name it as the leaf already.

    Raises ChainDiffers where the headers or the marks say otherwise, NotFound, VolumeInUse, ChainBroken,
    BackingOutside: then nothing may be written."""

    def differs(reason: str) -> errors.ChainDiffers:
        return errors.ChainDiffers(disk_id=disk_id, reason=reason)

    for volume_id in (*ids, *unused):
        if volume_id not in volumes:
            raise errors.NotFound(kind="volume", id=volume_id)
    if not live:
        now = find_leaf(disk_id, volumes.values())
        if now.leaf != ids[0]:
            raise now.trouble or differs(f"the storage's leaf is {now.leaf}, not {ids[0]}")
    found = walk(disk_id, volumes.values(), ids[0])
    if tuple(ids) not in (found, tuple(id_ for id_ in found if not volumes[id_].is_borrowed(disk_id))):
        raise differs(f"the headers show {' > '.join(found)}, not {' > '.join(ids)}")
    for volume_id in unused:
        if volume_id in ids:
            raise errors.VolumeInUse(volume_id=volume_id, by="the disk's own chain")
    wanted = dict(volumes)
    for volume_id in ids:
        backing = volumes[volume_id].backing
        wanted[volume_id] = replace(volumes[volume_id], parent=backing)
    for volume_id in unused:
        wanted[volume_id] = replace(volumes[volume_id], legality="illegal")
    then = find_leaf(disk_id, wanted.values())
    if then.leaf != ids[0]:
        raise then.trouble or differs(f"the marks would name {then.leaf}, not {ids[0]}")
    return wanted


def marks_in_order(
    volumes: Mapping[str, Volume], ids: Sequence[str], unused: Collection[str]
) -> list[tuple[str, str | None]]:
    """The `unused` volumes, each with the heir that its mark names, in an order in which they may be marked one by one:
    at no instant do the marks name another leaf than before or ids[0].

    The top of a range that stands on `ids` goes first, what the marks name as the leaf before the others: what lies
    below it is passed over from then on. The rest follows, each behind those that it stands on."""
    tips = set(find_tips(volumes.values()))
    stood_on = {p for id_ in unused for p in (volumes[id_].parent, volumes[id_].backing) if p != id_}
    heirs = {id_: heir for id_ in unused if id_ not in stood_on and (heir := _heir(volumes, id_, ids, unused))}

    def height(volume_id: str) -> int:
        at, seen = volumes[volume_id].backing, {volume_id}
        while at is not None and at in volumes and at not in seen:
            seen.add(at)
            at = volumes[at].backing
        return len(seen)

    tops = sorted(heirs, key=lambda volume_id: (volume_id not in tips, volume_id))
    rest = sorted(set(unused) - set(heirs), key=lambda volume_id: (volume_id in tips, height(volume_id), volume_id))
    return [*((top, heirs[top]) for top in tops), *((volume_id, None) for volume_id in rest)]


def _heir(volumes: Mapping[str, Volume], top: str, ids: Sequence[str], unused: Collection[str]) -> str | None:
    """The volume of the chain that the range below this top went into; None where nothing lies between, or where
    something would be passed over that is in use."""
    if volumes[top].legality == "illegal" and volumes[top].heir is not None:
        return None  # it names one already
    routes = [{v.id: getattr(v, step) for v in volumes.values()} for step in ("parent", "backing")]
    for below in routes:
        at, seen = below[top], {top}
        while at is not None and at in unused and at not in seen:
            seen.add(at)
            at = below[at]
        if at in ids:
            named = replace(volumes[top], heir=at)
            passed = {one for route in routes for one in _down_to(volumes, named, route)}
            return at if passed and passed <= set(unused) else None
    return None
