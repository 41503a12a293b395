"""The four views of one disk as rows, one a volume. No I/O."""

from __future__ import annotations

from typing import Any

from services.snapshots.books import Books, Chain
from services.snapshots.facts import DiskFacts


def rows(books: Books, facts: DiskFacts | None, truth: Chain | None) -> list[dict[str, Any]]:
    """contracts.doctor.VolumeViews: the chain to believe first, then what else any side has, then foreign files."""
    known = books.chain()
    order = list(truth or known)
    more = [*known, *sorted(books.volumes), *(sorted(facts.storage.volumes) if facts else ())]
    if facts is not None:
        more += [id_ for id_ in (*reversed(facts.qemu.chain), *reversed(facts.libvirt.chain)) if id_]
    order += list(dict.fromkeys(id_ for id_ in more if id_ not in order))
    found = [_row(books, facts, known, id_) for id_ in order]
    foreign = [id_ for id_, one in enumerate(facts.qemu.chain) if one is None] if facts else []
    for at in foreign:
        path = facts.qemu.paths[at] if facts and at < len(facts.qemu.paths) else "a foreign file"
        found.append({**_nothing(), "path": path, "qemu": "reads" if at else "writes"})
    return found


def _nothing() -> dict[str, Any]:
    views = dict.fromkeys(("volume_id", "path", "qemu", "storage", "libvirt", "database", "backing_id", "parent_id"))
    return {**views, "known_parent_id": None, "actual_size": None, "snapshot_id": None, "description": ""}


def _row(books: Books, facts: DiskFacts | None, known: Chain, volume_id: str) -> dict[str, Any]:
    row = {**_nothing(), "volume_id": volume_id, "database": _as_known(books, known, volume_id)}
    line, holder = books.volumes.get(volume_id), books.holders.get(volume_id)
    if line is not None:
        row |= {"known_parent_id": line.parent_id, "actual_size": line.actual_size}
    if holder is not None:
        row |= {"snapshot_id": holder.snapshot_id, "description": holder.description}
    if facts is None:
        return row
    row |= {"qemu": _open(facts.qemu.chain, volume_id), "libvirt": _open(facts.libvirt.chain, volume_id)}
    volume = facts.storage.volumes.get(volume_id)
    if volume is not None:
        row |= {"backing_id": volume.backing_id, "parent_id": volume.parent_id, "actual_size": volume.actual_size}
        row["storage"] = _as_stored(facts, volume_id)
    return row


def _open(ids: tuple[str | None, ...], volume_id: str) -> str | None:
    return None if volume_id not in ids else "reads" if ids.index(volume_id) else "writes"


def _as_known(books: Books, known: Chain, volume_id: str) -> str | None:
    line = books.volumes.get(volume_id)
    if line is None:
        return None
    if volume_id == books.active_id:
        return "active"
    return "chain" if volume_id in known else "dropped" if line.dropped else "aside"


def _as_stored(facts: DiskFacts, volume_id: str) -> str:
    if facts.storage.volumes[volume_id].legality != "legal":
        return "illegal"
    if volume_id == facts.storage.leaf:
        return "leaf"
    return "chain" if volume_id in facts.storage.chain() else "aside"
