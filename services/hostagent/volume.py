"""The volumes of one image: their facts, their marks, their records. Runs in the storage child.

A volume is three files: `<id>` (the data), `<id>.meta`, `<id>.lease`. A volume exists when its `.meta` does; until
then `<id>.meta.new` says what is being made (creation.py). Only who holds `files.marks_lock` rewrites a `.meta`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from contracts import errors
from services.hostagent import chain, domain, files, layout, qcow2

MAX_FILES = 10_000  # in one image's folder
_META_NEEDS = 4096  # bytes of disk that rewriting a `.meta` may take

Ref = dict[str, Any]
Reader = Callable[[str, str], qcow2.Header | None]  # of a file, of an image


# -- facts ------------------------------------------------------------------------------------------------


def view(domain: Ref, image: str) -> dict[str, Any]:
    """StorageView of an image (plus `trouble`, and `backing` in each volume); NotFound: no such image."""
    place = _opened(domain)
    with files.guard("volumes", place.image(image), place.id):
        volumes = read_image(place, image)
        _, free = files.free(place.images)
    verdict = chain.find_leaf(image, volumes)
    return {
        "volumes": [facts(v) for v in volumes],
        "leaf": verdict.leaf,
        "problem": str(verdict.trouble) if verdict.trouble else None,
        "trouble": verdict.trouble.to_wire() if verdict.trouble else None,
        "free": free,
    }


def facts(volume: chain.Volume) -> dict[str, Any]:
    """VolumeFacts, and `backing`: the name in the header."""
    created = volume.created
    return {
        "volume_id": volume.id,
        "parent_id": volume.parent,
        "backing_id": volume.backing,
        "backing": qcow2.shown(volume.backing_name) if volume.backing_name else None,
        "format": volume.format,
        "capacity": volume.capacity,
        "actual_size": volume.actual_size,
        "legality": volume.legality,
        "volume_type": volume.volume_type,
        "pulls": volume.pulls,
        "template_disk_id": volume.image if volume.volume_type == "shared" else None,
        "created_at": None if created is None else datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def read_image(place: layout.Place, image: str, header: Reader | None = None) -> list[chain.Volume]:
    """Every volume of an image's folder, sorted by id, whatever is wrong with it; NotFound: no such folder.

    `header` is what reads a file's header, `read_header` if there is nothing better."""
    folder = place.image(image)
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise errors.ChainBroken(disk_id=image, reason=f"{folder} is not a directory")
        names = os.listdir(folder)
    except FileNotFoundError:
        raise errors.NotFound(kind="disk", id=image) from None
    if len(names) > MAX_FILES:
        raise errors.ChainBroken(disk_id=image, reason=f"its folder has more than {MAX_FILES} files")
    ids = sorted(n.removesuffix(".meta") for n in names if n.endswith(".meta") and layout.is_uuid(n[:-5]))
    by_inode = {}
    for volume_id in ids:
        try:
            found = os.lstat(f"{folder}/{volume_id}")
        except FileNotFoundError:
            continue
        by_inode[(found.st_dev, found.st_ino)] = volume_id
    return [_read_one(place, image, volume_id, by_inode, header or read_header) for volume_id in ids]


def _read_one(
    place: layout.Place, image: str, volume_id: str, by_inode: dict[tuple[int, int], str], header: Reader
) -> chain.Volume:
    """One volume; what cannot be read becomes its trouble."""
    file = place.file(image, volume_id)
    try:
        meta = read_meta(place, image, volume_id)
    except errors.ChainBroken as broken:
        return chain.Volume(id=volume_id, trouble=broken)
    known: dict[str, Any] = {
        "id": volume_id,
        "parent": meta.parent,
        "format": meta.format,
        "capacity": meta.capacity,
        "legality": meta.legality,
        "volume_type": meta.volume_type,
        "heir": meta.heir,
        "created": meta.created,
        "image": meta.image,
    }
    try:
        found = os.lstat(file)
        known["actual_size"] = found.st_blocks * 512
        if meta.format == "raw":
            # The header of a raw volume is the guest's to write: it is never read as a qcow2 header.
            known["capacity"] = found.st_size
            return chain.Volume(**known)
        return _with_header(known, place, image, by_inode, header(file, image))
    except errors.Problem as problem:
        return chain.Volume(**known, trouble=problem)
    except FileNotFoundError:
        reason = f"{file} is missing, its metadata is there"
        return chain.Volume(**known, trouble=errors.ChainBroken(disk_id=image, reason=reason))
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.EINVAL, errno.ENXIO}:
            raise  # an I/O error: nothing can be said about the image
        return chain.Volume(**known, trouble=errors.ChainBroken(disk_id=image, reason=f"{file} is not a regular file"))


def _with_header(
    known: dict[str, Any],
    place: layout.Place,
    image: str,
    by_inode: dict[tuple[int, int], str],
    header: qcow2.Header | None,
) -> chain.Volume:
    file = place.file(image, known["id"])
    if header is None or header.version == 1:
        raise errors.ChainBroken(disk_id=image, reason=f"{file}: its metadata says COW, it is no qcow2 file")
    if header.data_file is not None:
        reason = f"{file}: it keeps its data in another file, {qcow2.shown(header.data_file)}"
        raise errors.ChainBroken(disk_id=image, reason=reason)
    if header.corrupt:
        raise errors.ChainBroken(disk_id=image, reason=f"{file}: QEMU marked it corrupt")
    known |= {"capacity": header.virtual_size, "pulls": header.version == 3 and not header.bitmaps}
    if header.backing is None:
        return chain.Volume(**known)
    known["backing_name"] = header.backing
    backing, elsewhere = _resolve(place, image, known["id"], header, by_inode)
    return chain.Volume(**known, backing=backing, elsewhere=elsewhere)


def _resolve(
    place: layout.Place, image: str, volume_id: str, header: qcow2.Header, by_inode: dict[tuple[int, int], str]
) -> tuple[str, bool]:
    """The volume that a header's backing file name leads to, and whether it lies in another image.

    BackingOutside when it leads out of the domain, by whatever way; ChainBroken when it leads nowhere."""
    name = header.backing or ""
    outside = errors.BackingOutside(volume_id=volume_id, backing=qcow2.shown(name))
    plain = qcow2.local_file(name)
    if plain is None:
        raise outside
    target = os.path.join(place.image(image), plain)
    try:
        found = os.stat(target)
    except (FileNotFoundError, NotADirectoryError):
        real, root = os.path.realpath(target), os.path.realpath(place.images)
        if not real.startswith(root + "/"):
            raise outside from None
        reason = f"the backing file {qcow2.shown(name)} of volume {volume_id} is missing"
        raise errors.ChainBroken(disk_id=image, reason=reason) from None
    if header.backing_format not in {"raw", "qcow2"}:
        # QEMU would guess it from bytes that a guest can write
        reason = f"volume {volume_id} does not say which format its backing file has"
        raise errors.ChainBroken(disk_id=image, reason=reason)
    mine = by_inode.get((found.st_dev, found.st_ino))
    if mine is not None:
        return mine, False
    real, root = os.path.realpath(target), os.path.realpath(place.images)
    if not real.startswith(root + "/"):
        raise outside
    parts = real[len(root) + 1 :].split("/")
    if len(parts) != 2 or not layout.is_uuid(parts[1]) or not os.path.exists(f"{real}.meta"):
        reason = f"the backing file {qcow2.shown(name)} of volume {volume_id} is no volume"
        raise errors.ChainBroken(disk_id=image, reason=reason)
    return parts[1], parts[0] != image


def read_header(file: str, disk_id: str) -> qcow2.Header | None:
    """The qcow2 header of a file, None if it has none."""
    return qcow2.read(lambda limit: files.read(file, limit), file, disk_id)


def read_meta(place: layout.Place, image: str, volume_id: str, suffix: str = ".meta") -> layout.Volume:
    """The values of a `.meta`; NotFound if there is none, ChainBroken if it is damaged or another image's."""
    file = place.file(image, volume_id) + suffix
    try:
        data = files.read(file, layout.MAX_VOLUME_READ + 1)
    except FileNotFoundError:
        raise errors.NotFound(kind="volume", id=volume_id) from None
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.EINVAL, errno.ENXIO}:
            raise
        raise errors.ChainBroken(disk_id=image, reason=f"{file} is not a regular file") from None
    return layout.read_volume(data, file, image)


def _opened(ref: Ref, writable: bool = False) -> layout.Place:
    return domain.opened(ref, writable)


# -- marks and records ------------------------------------------------------------------------------------


def prepare_mark(domain: Ref, image: str, volume: str, legality: str, heir: str | None = None) -> None:
    """Write what `mark` will put in place, so that within a guest's pause only a rename is left to do."""
    place = layout.Place(domain["path"], domain["id"])
    path = place.file(image, volume) + ".meta"
    with files.guard("prepare_mark", path, place.id, _META_NEEDS), files.marks_lock(place, image):
        meta = read_meta(place, image, volume)
        if meta.legality != legality:
            _refuse_shared(meta, volume, "A mark")
            files.write_new(path, layout.write_volume(meta.having(legality=legality, heir=heir)))


def mark(domain: Ref, image: str, volume: str, legality: str, heir: str | None = None) -> None:
    """Set LEGALITY durably, and for the top of a range its heir in the same write (chain.py says why). The domain's own
    metadata is not read again: a guest stands still meanwhile."""
    place = layout.Place(domain["path"], domain["id"])
    path = place.file(image, volume) + ".meta"
    with files.guard("mark", path, place.id, _META_NEEDS), files.marks_lock(place, image):
        change(place, image, volume, legality=legality, heir=heir)


def check_variables(domain: Ref, image: str) -> None:
    """Before a start with UEFI firmware, which writes there: the image's variables are a file of its own, or not there
    yet. QEMU would follow a link, into another volume too."""
    place = layout.Place(domain["path"], domain["id"])
    path = layout.variables_path(place.path, place.id, image)
    with files.guard("check_variables", path, place.id):
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            reason = "it is no file of its own; take it away, and the VM begins with new variables"
            raise errors.StorageFailed(action="a start with these UEFI variables", path=path, reason=reason)


def resize(domain: Ref, image: str, volume: str, capacity: int) -> None:
    """Record a capacity in bytes."""
    place = _opened(domain)
    path = place.file(image, volume) + ".meta"
    with files.guard("resize", path, place.id, _META_NEEDS), files.marks_lock(place, image):
        change(place, image, volume, capacity=capacity)


def change(place: layout.Place, image: str, volume: str, **values: Any) -> None:
    """Rewrite some values of a `.meta`, durably, under the marks lock. Nothing to change: only made durable."""
    path = place.file(image, volume) + ".meta"
    meta = read_meta(place, image, volume)
    changed = meta.having(**values)
    if changed == meta:
        files.sync_folder(os.path.dirname(path))  # whoever wrote it may have died before its own sync
        return
    _refuse_shared(meta, volume, "A change of its metadata")
    files.write(path, layout.write_volume(changed))


def _refuse_shared(meta: layout.Volume, volume: str, action: str) -> None:
    """A template's volume is never changed: not even its metadata, while it has one name only."""
    if meta.volume_type == "shared":
        raise errors.TemplateVolume(action=action, volume_id=volume, template_disk_id=meta.image)


def set_type(place: layout.Place, image: str, volume: str, kind: str) -> None:
    """Record VOLTYPE, except of a template's volume, which stays shared."""
    with files.marks_lock(place, image):
        if read_meta(place, image, volume).volume_type != "shared":
            change(place, image, volume, volume_type=kind)
