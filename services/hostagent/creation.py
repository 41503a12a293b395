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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from chassis import crash
from contracts import errors
from services.hostagent import chain, domain, files, layout, volume

NEEDS = 512 * 1024  # bytes on the disk of an empty qcow2 file and what goes with it

Ref = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What is asked for; `capacity` in bytes. `shared`: a template's volume."""

    place: layout.Place
    image: str
    volume: str
    parent: str | None
    capacity: int
    format: str
    description: str = ""
    shared: bool = False

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
            volume_type="shared" if self.shared else "leaf",
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
            same(wanted)
        else:
            make(wanted, lambda: check_parent(wanted), lambda parent: make_empty(wanted, parent))
        return facts(wanted)


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref, writable=True)


def facts(wanted: Wanted) -> dict[str, Any]:
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


def same(wanted: Wanted) -> None:
    """The volume that is there must be the one that is asked for."""
    meta = volume.read_meta(wanted.place, wanted.image, wanted.volume)
    has = (meta.parent, meta.capacity, meta.format, meta.legality)
    if has != (wanted.parent, wanted.capacity, wanted.format, "legal"):
        raise errors.AlreadyExists(kind="volume", field="id", value=wanted.volume)


def check_parent(wanted: Wanted) -> chain.Volume | None:
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
    if parent.volume_type == "shared":  # its disk is the template itself; a thin disk's leaf is never the template's
        owner = parent.image or wanted.image
        raise errors.TemplateVolume(action="A volume on it", volume_id=parent.id, template_disk_id=owner)
    if wanted.capacity < parent.capacity:
        raise errors.BadRequest(errors={"capacity": [f"Less than the parent's {parent.capacity}."]})
    return parent


def check_foreign(wanted: Wanted) -> None:
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


def make(wanted: Wanted, look: Callable[[], T], fill: Callable[[T], None]) -> None:
    """Under the image's lock: `look` refuses what does not fit, `fill` makes the data file `<id>.new` of what that
    found. After a failure nothing half-made stays."""
    made_folder = _make_folder(wanted)
    try:
        found = look()
        check_foreign(wanted)
        try:
            _write(wanted, lambda: fill(found))
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


def _write(wanted: Wanted, fill: Callable[[], None]) -> None:
    if not os.path.lexists(wanted.file):
        files.write_new(wanted.file + ".meta", layout.write_volume(wanted.meta()))
        files.sync_folder(wanted.folder)
        crash.point("volume.create.after_intent")
        files.remove(wanted.file + layout.NEW)
        fill()
        _put_in_place(wanted)
    crash.point("volume.create.after_image")
    files.make_sparse(wanted.file + ".lease", layout.MiB)
    crash.point("volume.create.after_lease")
    if wanted.parent is not None:
        volume.set_type(wanted.place, wanted.image, wanted.parent, "internal")
    crash.point("volume.create.after_parent")
    files.put(wanted.file + ".meta")
    crash.point("volume.create.after_meta")


def _put_in_place(wanted: Wanted) -> None:
    new = wanted.file + layout.NEW
    os.chmod(new, 0o660)
    crash.point("volume.create.before_image")
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    files.put(wanted.file)


def make_empty(wanted: Wanted, parent: chain.Volume | None) -> None:
    """An empty volume, on its parent if it has one."""
    command = ["qemu-img", "create", "-q", "-f", layout.QEMU_FORMAT[wanted.format]]
    if wanted.format == "cow":
        command += ["-o", "compat=1.1,lazy_refcounts=off"]
    if parent is not None:
        # -u: the parent is not opened; a running VM holds its lock, and its header was read above
        command += ["-u", "-b", parent.id, "-F", layout.QEMU_FORMAT[parent.format]]
    done = subprocess.run(
        [*command, wanted.volume + layout.NEW, str(wanted.capacity)],
        cwd=wanted.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise refused(wanted, "create_volume", NEEDS, done.stderr.strip())


def refused(wanted: Wanted, action: str, needs: int, said: str) -> errors.Problem:
    """What qemu-img said, as one of our errors."""
    if "No space left" in said or "quota exceeded" in said.lower():
        has = files.free(wanted.place.images)[1]
        return errors.NoSpace(action=action, domain_id=wanted.place.id, needs=needs, has=has)
    return errors.StorageFailed(action=action, path=wanted.file, reason=said[:500] or "qemu-img failed")


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
