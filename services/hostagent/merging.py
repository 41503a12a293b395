"""The record of a merge, and what becomes of one that was never recorded. Runs in the storage child.

At the end of an internal commit QEMU first writes the child's header (its backing file is base now), and only then
the tables of base that make what was copied readable: a QEMU that dies in between leaves a child that stands on a base
without it (docs/adr/0013). So a header proves nothing. The merge is done when the records say so, which are written
once QEMU itself has ended the job; until then top holds everything, and the header can be put back to it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import chain, domain, files, layout, volume

_META_NEEDS = 4096  # bytes of disk that rewriting a `.meta` may take

Ref = dict[str, Any]


def record_merge(
    domain: Ref,
    *,
    image: str,
    base: str,
    top: str,
    child: str | None,
    between: Sequence[str] = (),
    concluded: bool = False,
) -> None:
    """Make the records say what is: top, with what lies between, went down into base, and child (or nothing) stands on
    base. Top is marked first: what lies between is passed over from then on, and can be marked one by one.

    `concluded`: a living QEMU has ended the job of this internal merge and has base open for reading only. Without it
    only a record that was begun is finished; JobFailed for one that was not."""
    place = _opened(domain)
    with files.guard("record_merge", place.image(image), place.id, _META_NEEDS):
        if child is not None:
            for one in (base, child):
                files.sync(place.file(image, one))
        with files.marks_lock(place, image):
            volumes = {v.id: v for v in volume.read_image(place, image)}
            _check_merged(image, volumes, base, top, child)
            if child is not None and not concluded and not _begun(volumes, base, top, child):
                reason = f"QEMU is gone, and it was not recorded that {top} went down into {base}"
                raise errors.JobFailed(disk_id=image, reason=reason)
            _write(place, image, volumes, base, top, child, between)


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref)


def _write(  # noqa: PLR0917 - a merge has as many ends as it has
    place: layout.Place,
    image: str,
    volumes: Mapping[str, chain.Volume],
    base: str,
    top: str,
    child: str | None,
    between: Sequence[str],
) -> None:
    if top in volumes:
        volume.change(place, image, top, legality="illegal", heir=base if between else None)
    crash.point("volume.record.after_top")
    for one in between:
        if one in volumes:
            volume.change(place, image, one, legality="illegal")
        crash.point("volume.record.after_between")
    if child is not None:
        volume.change(place, image, child, parent=base)
    crash.point("volume.record.after_child")
    shared = volumes[base].volume_type == "shared"
    kind = None if shared else ("leaf" if child is None else "internal")
    volume.change(place, image, base, capacity=volumes[base].capacity, volume_type=kind)
    crash.point("volume.record.after_base")


def _begun(volumes: Mapping[str, chain.Volume], base: str, top: str, child: str) -> bool:
    """Whether the first record of this merge is on the storage: top's mark, which only it sets."""
    return volumes[child].parent == base or top not in volumes or volumes[top].legality == "illegal"


def _check_merged(image: str, volumes: Mapping[str, chain.Volume], base: str, top: str, child: str | None) -> None:
    """The storage must show the merge as done; a record of a wish would lose data."""
    for needed in (base, child):
        if needed is not None and needed not in volumes:
            raise errors.NotFound(kind="volume", id=needed)
        if needed is not None and volumes[needed].trouble is not None:
            raise volumes[needed].trouble or errors.ChainBroken(disk_id=image, reason="unreadable")
    if child is not None and volumes[child].backing != base:
        reason = f"volume {child} stands on {volumes[child].backing}, not on {base}: the merge is not done"
        raise errors.ChainDiffers(disk_id=image, reason=reason)
    if child is None and top in volumes and volumes[top].legality != "illegal":
        reason = f"volume {top} is not marked illegal: the pivot to {base} is not done"
        raise errors.ChainDiffers(disk_id=image, reason=reason)


# -- without a record -------------------------------------------------------------------------------------


def unrecorded(domain: Ref, image: str) -> dict[str, Any]:
    """{"found": {volume: the top that it would stand on again}}, without any lock. For a disk that no QEMU has open."""
    place = _opened(domain)
    with files.guard("unrecorded", place.image(image), place.id):
        return {"found": chain.unrecorded(volume.read_image(place, image))}


def put_back(domain: Ref, image: str) -> dict[str, Any]:
    """{"back": {volume: the top that it stands on again}}. For a disk that no QEMU has open: every header that a merge
    changed without a record names its old top again. VolumeInUse while a QEMU has such a volume open."""
    place = _opened(domain)
    with files.guard("put_back", place.image(image), place.id):
        if not chain.unrecorded(volume.read_image(place, image)):
            return {"back": {}}
        # nobody creates, deletes or records meanwhile; what was seen without the locks is looked at again
        with files.image_lock(place, image), files.marks_lock(place, image):
            volumes = {v.id: v for v in volume.read_image(place, image)}
            back = chain.unrecorded(volumes.values())
            for child, top in back.items():
                rebase(place, image, child, volumes[top], lambda: crash.point("volume.put_back.after_header"))
    return {"back": back}


def wait_idle(domain: Ref, image: str) -> None:
    """Until nobody works in the image: a writer whose agent died may still be at its end. StorageTimeout."""
    place = _opened(domain)
    with files.guard("cancel_job", place.image(image), place.id), files.image_lock(place, image):
        return


def rebase(place: layout.Place, image: str, child: str, below: chain.Volume, written: Callable[[], None]) -> None:
    """Write the name into the header, durably; `written` is called before it is. qemu-img takes QEMU's image lock on
    the child for it."""
    file = place.file(image, child)
    with files.qemu_lock(file, child):
        pass  # for a clear word: qemu-img would refuse as well
    words = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", below.id, "-F", layout.QEMU_FORMAT[below.format], child]
    done = subprocess.run(words, cwd=place.image(image), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise errors.StorageFailed(action="rebase", path=file, reason=done.stderr.strip()[:500] or "qemu-img failed")
    written()
    files.sync(file)
    now = {v.id: v for v in volume.read_image(place, image)}[child]
    if now.backing != below.id:
        reason = f"volume {child} stands on {now.backing} after its header was changed to {below.id}"
        raise errors.ChainBroken(disk_id=image, reason=reason)
