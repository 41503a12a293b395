"""Making a volume: an order of small durable steps that any repetition finishes. Runs in the storage child.

    <id>.meta.new   what is being made (the intent)
    <id>            made as <id>.new by qemu-img, synced, renamed
    <id>.lease      1 MiB, sparse
    parent's .meta  VOLTYPE=INTERNAL
    <id>.meta       renamed from .meta.new: from now on the volume exists, and is the leaf

A file with the volume's name but without that intent is somebody else's and is refused.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import chain, domain, files, layout, volume

NEEDS = 512 * 1024  # bytes on the disk of an empty qcow2 file and what goes with it
_QEMU_FORMAT = {"cow": "qcow2", "raw": "raw"}

Ref = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What is asked for; `capacity` in bytes."""

    place: layout.Place
    image: str
    volume: str
    parent: str | None
    capacity: int
    format: str
    description: str

    @property
    def folder(self) -> str:
        return self.place.image(self.image)

    @property
    def file(self) -> str:
        return self.place.file(self.image, self.volume)

    def meta(self) -> layout.Volume:
        return layout.new_volume(
            domain_id=self.place.id,
            image=self.image,
            parent=self.parent,
            capacity=self.capacity,
            format=self.format,
            description=self.description,
            created=int(time.time()),
        )


def create(
    domain: Ref, *, image: str, volume: str, parent: str | None, capacity: int, format: str, description: str
) -> dict[str, Any]:
    """VolumeFacts of the volume, made now or by an earlier call with the same arguments."""
    place = _opened(domain)
    wanted = Wanted(place, image, volume, parent, capacity, format, description)
    _check(wanted)
    with files.guard("create_volume", wanted.file, place.id, NEEDS), files.image_lock(place, image):
        if os.path.lexists(wanted.file + ".meta"):
            _same(wanted)
        else:
            _make(wanted)
        return _facts(wanted)


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref, writable=True)


def _facts(wanted: Wanted) -> dict[str, Any]:
    made = {v.id: v for v in volume.read_image(wanted.place, wanted.image)}[wanted.volume]
    if made.trouble is not None:
        raise made.trouble
    return volume.facts(made)


# -- refusals ---------------------------------------------------------------------------------------------


def _check(wanted: Wanted) -> None:
    wrong: dict[str, list[str]] = {}
    if wanted.capacity % 512:
        wrong["capacity"] = ["Not a multiple of 512."]
    if wanted.parent is not None and wanted.format == "raw":
        wrong["format"] = ["A raw volume cannot stand on another."]
    try:
        layout.write_volume(wanted.meta())
    except ValueError as error:
        wrong["description"] = [str(error)]
    if wrong:
        raise errors.BadRequest(errors=wrong)


def _same(wanted: Wanted) -> None:
    """The volume that is there must be the one that is asked for."""
    meta = volume.read_meta(wanted.place, wanted.image, wanted.volume)
    has = (meta.parent, meta.capacity, meta.format, meta.legality)
    if has != (wanted.parent, wanted.capacity, wanted.format, "legal"):
        raise errors.AlreadyExists(kind="volume", field="id", value=wanted.volume)


def _check_parent(wanted: Wanted) -> chain.Volume | None:
    """The parent must be the leaf, the first volume of an image must be its only one."""
    volumes = volume.read_image(wanted.place, wanted.image)
    if wanted.parent is None:
        if volumes:
            reason = f"it has volumes already, {volumes[0].id} for one; a further one needs a parent"
            raise errors.ChainDiffers(disk_id=wanted.image, reason=reason)
        return None
    by_id = {v.id: v for v in volumes}
    if wanted.parent not in by_id:
        raise errors.NotFound(kind="volume", id=wanted.parent)
    verdict = chain.find_leaf(wanted.image, volumes)
    if verdict.trouble is not None:
        raise verdict.trouble
    if verdict.leaf != wanted.parent:
        reason = f"its leaf is {verdict.leaf}, not {wanted.parent}"
        raise errors.ChainDiffers(disk_id=wanted.image, reason=reason)
    parent = by_id[wanted.parent]
    if wanted.capacity < parent.capacity:
        raise errors.BadRequest(errors={"capacity": [f"Less than the parent's {parent.capacity}."]})
    return parent


def _check_foreign(wanted: Wanted) -> None:
    """Files with the volume's name are ours only if our intent lies beside them."""
    if not any(os.path.lexists(wanted.file + s) for s in ("", ".lease")):
        return
    try:
        intent = volume.read_meta(wanted.place, wanted.image, wanted.volume, suffix=".meta" + layout.NEW)
    except (errors.NotFound, errors.ChainBroken):
        raise errors.AlreadyExists(kind="file", field="path", value=wanted.file) from None
    if intent.having() != layout.Volume({**wanted.meta().values, "CTIME": intent.values.get("CTIME", "")}):
        raise errors.AlreadyExists(kind="volume", field="id", value=wanted.volume)


# -- making -----------------------------------------------------------------------------------------------


def _make(wanted: Wanted) -> None:
    made_folder = _make_folder(wanted)
    try:
        parent = _check_parent(wanted)
        _check_foreign(wanted)
        try:
            _write(wanted, parent)
        except (OSError, errors.Problem):
            _take_back(wanted)
            raise
    except (OSError, errors.Problem):
        if made_folder:
            _take_back_folder(wanted)
        raise


def _make_folder(wanted: Wanted) -> bool:
    try:
        os.mkdir(wanted.folder, 0o775)
    except FileExistsError:
        return False
    files.sync_folder(wanted.place.images)
    return True


def _write(wanted: Wanted, parent: chain.Volume | None) -> None:
    if not os.path.lexists(wanted.file):
        files.write_new(wanted.file + ".meta", layout.write_volume(wanted.meta()))
        files.sync_folder(wanted.folder)
        crash.point("volume.create.after_intent")
        _make_file(wanted, parent)
    crash.point("volume.create.after_image")
    files.make_sparse(wanted.file + ".lease", layout.MiB)
    crash.point("volume.create.after_lease")
    if wanted.parent is not None:
        volume.set_type(wanted.place, wanted.image, wanted.parent, "internal")
    crash.point("volume.create.after_parent")
    files.put(wanted.file + ".meta")
    crash.point("volume.create.after_meta")


def _make_file(wanted: Wanted, parent: chain.Volume | None) -> None:
    new = wanted.volume + layout.NEW
    files.remove(f"{wanted.folder}/{new}")
    command = ["qemu-img", "create", "-q", "-f", _QEMU_FORMAT[wanted.format]]
    if wanted.format == "cow":
        command += ["-o", "compat=1.1,lazy_refcounts=off"]
    if parent is not None:
        # -u: the parent is not opened; a running VM holds its lock, and its header was read above
        command += ["-u", "-b", parent.id, "-F", _QEMU_FORMAT[parent.format]]
    done = subprocess.run(
        [*command, new, str(wanted.capacity)], cwd=wanted.folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise _refused(wanted, done.stderr.strip())
    os.chmod(f"{wanted.folder}/{new}", 0o660)
    crash.point("volume.create.before_image")
    with open(f"{wanted.folder}/{new}", "rb+") as file:
        os.fsync(file.fileno())
    files.put(wanted.file)


def _refused(wanted: Wanted, said: str) -> errors.Problem:
    if "No space left" in said or "quota exceeded" in said.lower():
        has = files.free(wanted.place.images)[1]
        return errors.NoSpace(action="create_volume", domain_id=wanted.place.id, needs=NEEDS, has=has)
    return errors.StorageFailed(action="create_volume", path=wanted.file, reason=said[:500] or "qemu-img failed")


def _take_back(wanted: Wanted) -> None:
    """After a failure nothing half-made stays, as far as the storage lets us. No QEMU was told of these files."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(wanted.file + ".meta"):
            for suffix in ("", layout.NEW, ".lease", ".meta" + layout.NEW):
                files.remove(wanted.file + suffix)
            files.sync_folder(wanted.folder)


def _take_back_folder(wanted: Wanted) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(wanted.folder)
        files.sync_folder(wanted.place.images)
