"""A thin disk: hard links of a template's volume, and an empty overlay on it. Runs in the storage child.

    <id>.meta.new         the intent, as for any volume
    <template>{,.lease}   hard links of the template's files
    <template>.meta       the last one: now the template's volume has a name here too
    <id> ... <id>.meta    as for any volume (creation.py)

Between the last link and `<id>.meta` the image has the template's volume only, which is not its own to write to:
chain.find_leaf gives such an image no leaf.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import chain, creation, domain, files, layout, volume

_LINKED = ("", ".lease", ".meta")

Ref = dict[str, Any]


def create_thin(domain: Ref, image: str, volume: str, template_image: str, template_volume: str) -> dict[str, Any]:
    """VolumeFacts of the overlay, made now or before."""
    place = _opened(domain)
    file = place.file(image, volume)
    with files.guard("create_thin", file, place.id, creation.NEEDS), contextlib.ExitStack() as held:
        for name in sorted({image, template_image}):  # one order for everybody
            held.enter_context(files.image_lock(place, name))
        base = _template(place, template_image, template_volume)
        wanted = creation.Wanted(place, image, volume, base.id, base.capacity, "cow")
        if os.path.lexists(file + ".meta"):
            creation.same(wanted)
        else:
            _make(wanted, template_image, base)
        return creation.facts(wanted)


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref, writable=True)


def _template(place: layout.Place, image: str, volume_id: str) -> chain.Volume:
    """The template's volume; refuses one that is none, or that others could still write to."""
    found = {v.id: v for v in volume.read_image(place, image)}.get(volume_id)
    if found is None:
        raise errors.NotFound(kind="volume", id=volume_id)
    if found.trouble is not None:
        raise found.trouble
    if found.volume_type != "shared" or found.legality != "legal" or found.parent is not None:
        reason = f"its volume {volume_id} is {found.legality} and {found.volume_type}: it is no template's"
        raise errors.ChainDiffers(disk_id=image, reason=reason)
    return found


def _make(wanted: creation.Wanted, template_image: str, base: chain.Volume) -> None:
    try:
        creation.make(wanted, lambda: _look(wanted, base), lambda _: _fill(wanted, template_image, base))
    except (OSError, errors.Problem):
        with contextlib.suppress(OSError, errors.Problem):
            _unlink(wanted, base.id)
        raise


def _look(wanted: creation.Wanted, base: chain.Volume) -> None:
    others = [v.id for v in volume.read_image(wanted.place, wanted.image) if v.id != base.id]
    if others:
        raise errors.ChainDiffers(disk_id=wanted.image, reason=f"it has volumes already, {others[0]} for one")


def _fill(wanted: creation.Wanted, template_image: str, base: chain.Volume) -> None:
    for part in _LINKED:
        _link(wanted.place.file(template_image, base.id) + part, f"{wanted.folder}/{base.id}{part}")
        crash.point(f"volume.thin.linked{part or '.data'}")
    files.sync_folder(wanted.folder)
    creation.make_empty(wanted, base)


def _link(old: str, new: str) -> None:
    """A further name for the same file; one that is there must be that."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        if not os.path.samestat(os.lstat(old), os.lstat(new)):
            raise errors.AlreadyExists(kind="file", field="path", value=new) from None


def _unlink(wanted: creation.Wanted, base: str) -> None:
    """After a failure: our names for the template's files go, as long as these have others and no volume needs them."""
    if any(v.id != base for v in volume.read_image(wanted.place, wanted.image)):
        return
    for part in reversed(_LINKED):
        path = f"{wanted.folder}/{base}{part}"
        if os.path.lexists(path) and os.lstat(path).st_nlink > 1:
            files.remove(path)
    os.rmdir(wanted.folder)
    files.sync_folder(wanted.place.images)
