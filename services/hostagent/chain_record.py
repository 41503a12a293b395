"""The records of a whole chain follow its headers, when a person has asked for it. Runs in the storage child.

A QEMU that was started past the agent may run on a header whose merge, or pull, died before its tables were written
(docs/adr/0013). So while one runs, a volume that left the chain without a record is dropped only if all that it holds
is held above it or below (docs/adr/0028). What merely stands on the leaf is marked before: whatever becomes of the
rest, the marks name what QEMU writes to then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import chain, domain, files, held, layout, volume
from services.hostagent.chain import Volume

_META_NEEDS = 4096  # bytes of disk that rewriting a `.meta` may take

Ref = dict[str, Any]
Volumes = Mapping[str, Volume]


def record_chain(domain: Ref, image: str, ids: list[str], unused: list[str], *, live: bool) -> None:
    """Make the records say what is: `ids` (leaf first) is the chain, which headers show already; nothing reads the
    `unused` ones. `live`: a QEMU writes to ids[0], so that the marks may have named another leaf until now.

    A crash in between leaves marks that name the leaf of before or ids[0]; none where an unused branch has no heir."""
    place = _opened(domain)
    needs = _META_NEEDS * (len(ids) + len(unused))
    with files.guard("record_chain", place.image(image), place.id, needs):
        proved = _prove(place, image, ids, unused) if live else set()
        with files.marks_lock(place, image):
            volumes = _read(place, image)
            wanted = chain.following(image, volumes, ids, unused, live=live)
            if live and not _left(volumes, ids) <= proved:
                raise errors.ChainDiffers(disk_id=image, reason="it changed while it was looked at; ask again")
            for volume_id in (id_ for id_ in ids if live and not wanted[id_].elsewhere):
                files.sync(place.file(image, volume_id))  # what headers show has to outlive a power cut before marks do
            _mark(place, image, volumes, ids, unused)
            _write(place, image, wanted, ids)


def _prove(place: layout.Place, image: str, ids: Sequence[str], unused: Sequence[str]) -> set[str]:
    """The volumes that went up or down as a whole. Without the lock of the marks, which a pivot would wait for: tables
    may be many. Raises StorageFailed."""
    with files.marks_lock(place, image):
        volumes = _read(place, image)
        chain.following(image, volumes, ids, unused, live=True)
        _mark(place, image, volumes, ids, chain.above(volumes, ids, unused))
        leaf = chain.find_leaf(image, _read(place, image).values()).leaf
    for at in ids:
        below = volumes.get(volumes[at].backing or "")
        ground = place.file(image, below.id) if below is not None and below.format == "cow" else None
        for one in chain.left_behind(volumes, at):
            if volumes[one].legality == "legal":  # else its mark is a record that was begun, after a proof
                _refuse_lost(place, image, at, volumes[one], ground, may_stop=leaf == ids[0])
    return _left(volumes, ids)


def _refuse_lost(
    place: layout.Place, image: str, above: str, gone: Volume, ground: str | None, *, may_stop: bool
) -> None:
    path, lower = place.file(image, above), place.file(image, gone.id)
    gap = held.missing(path, lower, image, ground=ground, raw=gone.capacity if gone.format == "raw" else None)
    if gap is not None:
        beside = f"nor in those of {ground}" if ground else "and nothing below it can prove to have them"
        helps = "Power the VM off and start it, which puts the volume back"
        reason = (
            f"bytes {gap[0]} to {gap[1]}, which {lower} holds, are not in its tables, {beside}: whatever took that "
            f"volume out of the chain is not whole. {helps if may_stop else 'Do not stop the VM: it would start wrong'}"
        )
        raise errors.StorageFailed(action="recording this chain", path=path, reason=reason)


def _read(place: layout.Place, image: str) -> dict[str, Volume]:
    return {v.id: v for v in volume.read_image(place, image)}


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref)


def _left(volumes: Volumes, ids: Sequence[str]) -> set[str]:
    return {one for at in ids for one in chain.left_behind(volumes, at)}


def _mark(place: layout.Place, image: str, volumes: Volumes, ids: Sequence[str], unused: Sequence[str]) -> None:
    for volume_id, heir in chain.marks_in_order(volumes, ids, unused):
        volume.change(place, image, volume_id, legality="illegal", heir=heir)
        crash.point("volume.chain.after_mark")


def _write(place: layout.Place, image: str, wanted: Volumes, ids: Sequence[str]) -> None:
    for volume_id in reversed(ids):
        now = wanted[volume_id]
        kind = None if now.volume_type == "shared" else "leaf" if volume_id == ids[0] else "internal"
        parent = None if now.elsewhere else now.parent or layout.BLANK
        volume.change(place, image, volume_id, parent=parent, capacity=now.capacity, volume_type=kind)
        crash.point("volume.chain.after_record")
