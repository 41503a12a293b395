"""The names by which the headers of an image call the volumes below them. Runs in the storage child.

When libvirt ends a commit or a pull it puts the names of all that went together, one behind the folder of the one
before: `../image/volume` grows with every layer, an absolute name nails the chain to one mount, and QEMU crashes by a
name over 1023 bytes. It reads the names when a VM starts and never again, so what a header says later is of no use.
So each start makes those of its disks bare before; what is written while the VM runs is bare then, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import domain, files, layout, merging, volume
from services.hostagent.chain import Volume

MAX_BYTES = 900  # of the name that libvirt writes; QEMU 7.2 crashes by one over 1023

Ref = dict[str, Any]


def written(names: Sequence[str]) -> str:
    """The backing file name that libvirt writes into the child after an internal commit or a pull.

    `names`: those in the headers from the child down, the last one naming the new base. Each is put behind the folder
    part of what there is so far, and nothing is ever shortened."""
    path = ""
    for name in names:
        path = name if name.startswith("/") else path[: path.rfind("/") + 1] + name
    return path


def grown(volumes: Iterable[Volume]) -> dict[str, str]:
    """Volumes that name one of the same folder by more than its id, each with that one, both sound. A template's are
    left alone: their files are those of other images, too."""
    by_id = {one.id: one for one in volumes}
    return {
        one.id: below.id
        for one in by_id.values()
        if one.trouble is None and not one.elsewhere and one.volume_type != "shared" and one.legality == "legal"
        if (below := by_id.get(one.backing or "")) is not None and below.trouble is None
        if one.backing_name != one.backing
    }


def look_grown(domain: Ref, image: str) -> dict[str, Any]:
    """{"found": {volume: the one that it stands on}}, without any lock."""
    place = _opened(domain)
    with files.guard("look_grown", place.image(image), place.id):
        return {"found": grown(volume.read_image(place, image))}


def make_bare(domain: Ref, image: str) -> dict[str, Any]:
    """{"bare": [volumes], "kept": {volume: why its name stays}}. For a disk that no QEMU has open. A name that cannot
    be changed stays. ChainBroken: a header names another volume than before."""
    place, bare, kept = _opened(domain), list[str](), dict[str, str]()
    with (
        files.guard("make_bare", place.image(image), place.id),
        files.image_lock(place, image),
        files.marks_lock(place, image),
    ):
        volumes = {v.id: v for v in volume.read_image(place, image)}
        for child, below in grown(volumes.values()).items():
            why = _make_bare(place, image, child, volumes[below])
            if why is None:
                bare.append(child)
            else:
                kept[child] = why
    return {"bare": bare, "kept": kept}


def _make_bare(place: layout.Place, image: str, child: str, below: Volume) -> str | None:
    """Why not."""
    header = volume.read_header(place.file(image, child), image)
    said = header.backing_format if header else None
    if said != layout.QEMU_FORMAT[below.format]:
        return f"its header says that {below.id} is {said}, the metadata say {layout.QEMU_FORMAT[below.format]}"
    try:
        merging.rebase(place, image, child, below, lambda: crash.point("volume.bare.after_header"))
    except (errors.VolumeInUse, errors.StorageFailed) as problem:
        return str(problem)
    return None


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref)
