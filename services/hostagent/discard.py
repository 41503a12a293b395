"""Deleting a volume or a whole image. Runs in the storage child.

Safety rule 1, in this order: the image's lock; a scan of the whole domain; QEMU's exclusive image lock, kept until
the file is gone; rename to `_remove_me_...`; sync; unlink; sync. The data file goes first and `.meta` last, so that
after a crash at any point the mark is still there and a repetition goes on.

A new volume of an undone snapshot still counts when it comes here. It is marked between the rename of its data file and
all the rest: marked before, an old ask could still switch a QEMU to a dropped volume. A crash right between leaves a
chain that nothing starts from until the deletion is repeated.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import chain, domain, files, layout, qcow2, scan, volume

_PARTS = ("", ".lease", ".meta")
_NAMED = 5  # of those who refer, this many are told

Ref = dict[str, Any]


def discard(domain: Ref, image: str, volume: str, below: Sequence[str] = (), stands_on: str | None = None) -> None:
    """Delete a volume that is marked illegal, or one whose making was never finished, and after it those `below` in
    this order; a dropped range refers to itself only from the top down. Gone already: done. One that may not go
    keeps all of them.

    `stands_on`: the volume that a living QEMU writes to. Then `volume` may be a new one on top of it, to which no QEMU
    ever switched: the leaf by its marks, and empty. It is seen to be so, and loses its place, under QEMU's lock."""
    place = _opened(domain)
    doomed = [volume, *below]
    with (
        files.guard("discard_volume", place.file(image, volume), place.id),
        files.image_lock(place, image),
    ):
        if not os.path.lexists(place.image(image)):
            return
        _refuse_no_folder(place.image(image), image)
        there = [one for one in doomed if _is_there(place, image, one, stands_on)]
        if there:
            _refuse_any_used(place, image, there)
            crash.point("volume.discard.after_scan")
        for one in doomed:
            if one in there:
                _remove(place, image, one)
            _sweep(place, image, one)


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref)


def _refuse_no_folder(folder: str, image: str) -> None:
    """A link could lead out of the domain: nothing is deleted through one."""
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise errors.ChainBroken(disk_id=image, reason=f"{folder} is not a directory")


def _is_there(place: layout.Place, image: str, volume_id: str, stands_on: str | None) -> bool:
    """Whether there is something to delete; refuses what nobody dropped."""
    file = place.file(image, volume_id)
    if os.path.lexists(file + ".meta"):
        if volume.read_meta(place, image, volume_id).legality == "legal" and not _begun(place, image, volume_id):
            _refuse_chained(place, image, volume_id, stands_on)
        return True
    if os.path.lexists(file + ".meta" + layout.NEW):
        return True  # the intent of a creation that never ended
    if any(os.path.lexists(file + part) for part in _PARTS):
        raise errors.VolumeInUse(volume_id=volume_id, by="whoever made it: it has no metadata of ours")
    return False


def _begun(place: layout.Place, image: str, volume_id: str) -> bool:
    """Whether its data file lost its name under QEMU's lock, and who did that died before the mark."""
    file = place.file(image, volume_id)
    return not os.path.lexists(file) and os.path.lexists(f"{place.image(image)}/{layout.REMOVED}{volume_id}")


def _refuse_chained(place: layout.Place, image: str, volume_id: str, stands_on: str | None) -> None:
    """Raises VolumeInUse for a volume that counts, unless it is the leaf right above what QEMU writes to."""
    volumes = volume.read_image(place, image)
    one = {v.id: v for v in volumes}[volume_id]
    if (
        stands_on is None
        or not one.parent == one.backing == stands_on
        or chain.find_leaf(image, volumes).leaf != volume_id
    ):
        raise errors.VolumeInUse(volume_id=volume_id, by="its own chain: it was not marked illegal")


def _refuse_any_used(place: layout.Place, image: str, doomed: Sequence[str]) -> None:
    """Look once at the domain: each of these may be referred to by those that go before it, and by nothing else."""
    found = scan.survey(place)
    for number, volume_id in enumerate(doomed):
        _refuse_used(volume_id, scan.who_refers(found, place, image, volume_id, doomed[:number]))


def _refuse_used(volume_id: str, by: list[str]) -> None:
    if by:
        more = f" and {len(by) - _NAMED} more" if len(by) > _NAMED else ""
        raise errors.VolumeInUse(volume_id=volume_id, by=", ".join(by[:_NAMED]) + more)


def _remove(place: layout.Place, image: str, volume_id: str) -> None:
    """Under QEMU's lock: rename the three files, then unlink them. One that still counts is marked between, when no
    QEMU can open it by its name any more: an old snapshot call that comes through now fails, and harms nothing."""
    folder = place.image(image)
    with contextlib.ExitStack() as held:
        _hold(held, f"{folder}/{volume_id}", volume_id)
        _hold(held, f"{folder}/{volume_id}{layout.NEW}", volume_id)
        _refuse_written(place, image, volume_id)
        for part in _PARTS:
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{folder}/{volume_id}{part}", f"{folder}/{layout.REMOVED}{volume_id}{part}")
                files.sync_folder(folder)
            crash.point(f"volume.discard.renamed{part or '.data'}")
            if not part:
                _drop(place, image, volume_id)
        for part in _PARTS:
            files.remove(f"{folder}/{layout.REMOVED}{volume_id}{part}")
            crash.point(f"volume.discard.removed{part or '.data'}")
    files.sync_folder(folder)


def _refuse_written(place: layout.Place, image: str, volume_id: str) -> None:
    """Raises VolumeInUse for a volume that counts and into which something was written. Under QEMU's lock."""
    file = place.file(image, volume_id)
    if not os.path.lexists(file) or _legality(place, image, volume_id) != "legal":
        return
    table = qcow2.first_table(files.read(file, qcow2.FIRST_BYTES))
    if table is None or not files.is_zero(file, *table):
        raise errors.VolumeInUse(volume_id=volume_id, by="its own chain: something was written into it")


def _drop(place: layout.Place, image: str, volume_id: str) -> None:
    """Mark a volume that still counts; its parent is the leaf again."""
    if _legality(place, image, volume_id) == "legal":
        parent = volume.read_meta(place, image, volume_id).parent
        with files.marks_lock(place, image):
            volume.change(place, image, volume_id, legality="illegal")
        crash.point("volume.discard.marked")
        if parent is not None:
            volume.set_type(place, image, parent, "leaf")


def _legality(place: layout.Place, image: str, volume_id: str) -> str | None:
    """None: it has no metadata, or no more."""
    try:
        return volume.read_meta(place, image, volume_id).legality
    except errors.NotFound:
        return None


def _hold(held: contextlib.ExitStack, path: str, volume_id: str) -> None:
    """Take QEMU's lock on a data file, if it is there and a file."""
    if os.path.lexists(path) and stat.S_ISREG(os.lstat(path).st_mode):
        held.enter_context(files.qemu_lock(path, volume_id))


def _sweep(place: layout.Place, image: str, volume_id: str) -> None:
    """What a crash left of an earlier deletion, or of a rewritten `.meta`."""
    folder = place.image(image)
    swept = False
    with contextlib.ExitStack() as held:
        _hold(held, f"{folder}/{layout.REMOVED}{volume_id}", volume_id)
        for part in _PARTS:
            swept |= files.remove(f"{folder}/{layout.REMOVED}{volume_id}{part}")
            swept |= files.remove(f"{folder}/{volume_id}{part}{layout.NEW}")
    if swept:
        files.sync_folder(folder)


# -- a whole image ----------------------------------------------------------------------------------------


def delete_image(domain: Ref, image: str) -> None:
    """Delete a disk. Refused while anything outside refers to its volumes, a QEMU has one open, or its folder
    holds files that are no volumes. Gone already: done."""
    place = _opened(domain)
    folder, gone = place.image(image), place.image(layout.REMOVED + image)
    with (
        files.guard("delete_disk", folder, place.id),
        files.image_lock(place, image),
        contextlib.ExitStack() as held,
    ):
        locked = os.path.lexists(folder)
        if locked:
            names = _own_files(folder, image)
            _refuse_outside(place, image, names)
            for name in _data_files(folder, names):
                _hold(held, f"{folder}/{name}", layout.volume_of(name) or image)
            crash.point("image.delete.after_scan")
            os.rename(folder, gone)
            files.sync_folder(place.images)
            crash.point("image.delete.renamed")
        if os.path.lexists(gone):
            _empty(gone, image, locked)
            crash.point("image.delete.emptied")
            os.rmdir(gone)
            files.sync_folder(place.images)


def _own_files(folder: str, image: str) -> list[str]:
    """The names in an image's folder, all of which must be volumes' files."""
    _refuse_no_folder(folder, image)
    names = sorted(os.listdir(folder))
    foreign = [n for n in names if layout.volume_of(n) is None or not _is_file(f"{folder}/{n}")]
    if foreign:
        by = f"files in its folder that are no volumes: {qcow2.shown(', '.join(foreign[:_NAMED]))}"
        raise errors.VolumeInUse(volume_id=image, by=by)
    return names


def _is_file(path: str) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


def _data_files(folder: str, names: list[str]) -> list[str]:
    """Those whose data would be lost: not the metadata, not one of several names of a template's file."""
    return [
        n
        for n in names
        if layout.volume_of(n) in {n, n.removesuffix(layout.NEW), n.removeprefix(layout.REMOVED)}
        and os.lstat(f"{folder}/{n}").st_nlink == 1
    ]


def _refuse_outside(place: layout.Place, image: str, names: list[str]) -> None:
    """Nothing outside the image may refer to a file in it. A template's file has several names: there only
    a reference by this very name counts."""
    folder = place.image(image)
    real = os.path.realpath(folder)
    inodes: set[scan.Inode] = set()
    shared: set[scan.Inode] = set()
    for name in names:
        facts = os.lstat(f"{folder}/{name}")
        (shared if facts.st_nlink > 1 else inodes).add((facts.st_dev, facts.st_ino))
    ids = {i for i in map(layout.volume_of, names) if i}
    found = scan.survey(place)
    template = _template_inodes(place, image, names)
    by = {f.words for f in found.files if f.inode in template and os.path.dirname(f.path) != folder}
    for reference in found.references:
        if os.path.dirname(reference.source.path) == folder:
            continue
        this_name = reference.inode in shared and os.path.dirname(reference.real) == real
        if reference.inode in inodes or this_name or reference.ids & ids:
            by.add(reference.source.words)
    _refuse_used(image, sorted(by))


def _template_inodes(place: layout.Place, image: str, names: list[str]) -> set[scan.Inode]:
    """The data files of which this image is the template: they stay as long as another image has a name for them."""
    own: set[scan.Inode] = set()
    for name in names:
        with contextlib.suppress(errors.ChainBroken, errors.NotFound, FileNotFoundError):
            meta = volume.read_meta(place, image, name) if layout.is_uuid(name) else None
            if meta is not None and meta.volume_type == "shared" and meta.image == image:
                facts = os.lstat(place.file(image, name))
                own.add((facts.st_dev, facts.st_ino))
    return own


def _empty(gone: str, image: str, locked: bool) -> None:
    """Unlink everything in a folder that is being removed, data first."""
    names = os.listdir(gone)
    with contextlib.ExitStack() as held:
        if not locked:
            for name in _data_files(gone, names):
                _hold(held, f"{gone}/{name}", layout.volume_of(name) or image)
        for name in sorted(names, key=lambda n: (n.endswith((".lease", ".meta")), n)):
            files.remove(f"{gone}/{name}")
            crash.point("image.delete.removed_one")
    files.sync_folder(gone)
