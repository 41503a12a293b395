"""The record of a pull: base and those between went up into top. Runs in the storage child.

At the end of a pull QEMU writes top's header (it stands on what base stood on now) while tables of top that make what
was pulled readable are still in its memory only: a QEMU that dies then leaves a top without it (docs/adr/0023). So, as
for merges (merging.py), a header proves nothing. The record is begun only when the tables on the storage say that top
holds all that the others do; until then these hold it, and the header can be put back to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import chain, domain, files, held, layout, volume

_META_NEEDS = 4096  # bytes of disk that rewriting a `.meta` may take

Ref = dict[str, Any]


def record_pull(
    domain: Ref,
    *,
    image: str,
    base: str,
    top: str,
    ground: str | None,
    between: Sequence[str] = (),
    concluded: bool = False,
    ended: bool = False,
) -> None:
    """Make the records say what is: top stands on `ground`, those that went into it are illegal. The lowest is marked
    first: what stands on it is no leaf as long as the next one's record names it, up to top's own, which comes last.

    `concluded`: a living QEMU has ended the job and was made to write out its tables. Without it only a record that was
    begun is finished; JobFailed for one that was not. `ended`: no QEMU, but qemu-img copied it all and ended well, in
    the caller's hands. It leaves out what reads the same from `ground`, so the tables of top prove nothing then."""
    place = _opened(domain)
    with files.guard("record_pull", place.image(image), place.id, _META_NEEDS), files.marks_lock(place, image):
        volumes = {v.id: v for v in volume.read_image(place, image)}
        gone = [one for one in (base, *reversed(between)) if one in volumes]
        _check_pulled(image, volumes, top, ground)
        if not ended and not begun(volumes, base, top, ground):
            if not concluded:
                reason = f"QEMU is gone, and it was not recorded that {base} went up into {top}"
                raise errors.JobFailed(disk_id=image, reason=reason)
            for one in gone:
                raw = volumes[one].capacity if volumes[one].format == "raw" else None
                held.refuse_missing(place.file(image, top), place.file(image, one), image, raw=raw)
        files.sync(place.file(image, top))
        for one in gone:
            volume.change(place, image, one, legality="illegal")
            crash.point("volume.pull.after_mark")
        volume.change(place, image, top, parent=ground or layout.BLANK, capacity=volumes[top].capacity)
        crash.point("volume.pull.after_top")


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref)


def begun(volumes: Mapping[str, chain.Volume], base: str, top: str, ground: str | None) -> bool:
    """Whether the first record of this pull is on the storage: base's mark, which only it sets."""
    return volumes[top].parent == ground or base not in volumes or volumes[base].legality == "illegal"


def _check_pulled(image: str, volumes: Mapping[str, chain.Volume], top: str, ground: str | None) -> None:
    """The storage must show the pull as done; a record of a wish would lose data."""
    for needed in (top, ground):
        if needed is not None and needed not in volumes:
            raise errors.NotFound(kind="volume", id=needed)
        if needed is not None and volumes[needed].trouble is not None:
            raise volumes[needed].trouble or errors.ChainBroken(disk_id=image, reason="unreadable")
    if volumes[top].backing != ground:
        reason = f"volume {top} stands on {volumes[top].backing}, not on {ground}: the pull is not done"
        raise errors.ChainDiffers(disk_id=image, reason=reason)
