"""Copying a whole disk into one volume of a new one: a template, or a full clone of one. Runs in the storage child.

The order of durable steps is creation's; here the data file is written by `qemu-img convert`, which may take hours.
What a killed copy leaves has no `.meta` and so is no volume: the repetition removes it and copies from the beginning,
because the source may have been written to in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
from dataclasses import replace
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import chain, creation, domain, files, layout, volume

PARENT_LOOK = 0.2  # seconds between two looks whether the agent still lives
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl
_AGENT = os.getppid()

Ref = dict[str, Any]


def copy_volume(
    *, domain: Ref, image: str, volume: str, source_domain: Ref, source_image: str, shared: bool
) -> dict[str, Any]:
    """VolumeFacts of the copy, made now or before. All the while no QEMU can open the source for writing."""
    place, origin = _opened(domain, writable=True), _opened(source_domain)
    file = place.file(image, volume)
    with files.guard("copy_volume", file, place.id), files.image_lock(place, image), contextlib.ExitStack() as held:
        if os.path.lexists(file + ".meta"):
            return _made_before(place, image, volume, shared)
        leaf = _hold_source(held, origin, source_image)
        wanted = creation.Wanted(place, image, volume, None, leaf.capacity, "cow", shared=shared)
        source = origin.file(source_image, leaf.id)
        creation.make(wanted, lambda: _look(wanted, source, leaf), lambda needs: _convert(wanted, source, leaf, needs))
        return creation.facts(wanted)


def look_copy(domain: Ref, image: str, volume: str) -> dict[str, Any]:
    """{"done": whether the volume exists, "copied": bytes that its data file takes by now}."""
    place = _opened(domain)
    file = place.file(image, volume)
    with files.guard("look_copy", file, place.id):
        done = os.path.lexists(file + ".meta")
        with contextlib.suppress(FileNotFoundError):
            return {"done": done, "copied": os.lstat(file if done else file + layout.NEW).st_blocks * 512}
        return {"done": done, "copied": 0}


def _opened(ref: Ref, writable: bool = False) -> layout.Place:
    return domain.opened(ref, writable)


def _made_before(place: layout.Place, image: str, volume_id: str, shared: bool) -> dict[str, Any]:
    meta = volume.read_meta(place, image, volume_id)
    wanted = creation.Wanted(place, image, volume_id, None, meta.capacity, "cow", shared=shared)
    creation.same(wanted)
    if (meta.volume_type == "shared") is not shared:
        raise errors.AlreadyExists(kind="volume", field="id", value=volume_id)
    return creation.facts(wanted)


# -- the source -------------------------------------------------------------------------------------------


def _hold_source(held: contextlib.ExitStack, origin: layout.Place, image: str) -> chain.Volume:
    """The source's leaf, with a lock on each volume below it. Read once more under the locks: the chain may have
    changed before they were there."""
    before = _chain(origin, image)
    for one in before:
        held.enter_context(files.read_lock(origin.file(image, one.id), one.id))
    if [replace(v, actual_size=0) for v in _chain(origin, image)] != [replace(v, actual_size=0) for v in before]:
        raise errors.ChainDiffers(disk_id=image, reason="it changed while its copy was to begin")
    return before[0]


def _chain(origin: layout.Place, image: str) -> list[chain.Volume]:
    """Leaf first; raises what is wrong with it."""
    volumes = volume.read_image(origin, image)
    if chain.unrecorded(volumes):
        raise errors.ChainDiffers(
            disk_id=image, reason="a merge of it was not recorded; its headers may name too little"
        )
    verdict = chain.find_leaf(image, volumes)
    if verdict.leaf is None:
        raise verdict.trouble or errors.ChainBroken(disk_id=image, reason="it has no leaf")
    by_id = {v.id: v for v in volumes}
    return [by_id[id_] for id_ in chain.walk(image, volumes, verdict.leaf)]


# -- the copy ---------------------------------------------------------------------------------------------


def _look(wanted: creation.Wanted, source: str, leaf: chain.Volume) -> int:
    """Refuse what does not fit; the bytes that the copy needs."""
    creation.check_parent(wanted)
    creation.check_foreign(wanted)
    if os.path.lexists(wanted.file):  # of a copy that died before it became a volume
        with files.qemu_lock(wanted.file, wanted.volume):
            files.remove(wanted.file)
        files.sync_folder(wanted.folder)
    files.remove(wanted.file + layout.NEW)
    needs, has = _measure(wanted, source, leaf), files.free(wanted.place.images)[1]
    if needs > has:
        raise errors.NoSpace(action="copying", domain_id=wanted.place.id, needs=needs, has=has)
    return needs


def _measure(wanted: creation.Wanted, source: str, leaf: chain.Volume) -> int:
    command = ["qemu-img", "measure", "--output=json", "-f", layout.QEMU_FORMAT[leaf.format], "-O", "qcow2", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise creation.refused(wanted, "copying", 0, done.stderr.strip())
    return int(json.loads(done.stdout)["required"]) + layout.MiB


def _convert(wanted: creation.Wanted, source: str, leaf: chain.Volume, needs: int) -> None:
    form = layout.QEMU_FORMAT[leaf.format]
    command = ["qemu-img", "convert", "-q", "-f", form, "-O", "qcow2", "-o", "compat=1.1,lazy_refcounts=off"]
    with subprocess.Popen(
        [*command, source, wanted.file + layout.NEW],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_die_with_us,  # noqa: PLW1509 - this process has one thread
    ) as running:
        said = _wait(running)
    if running.returncode != 0:
        raise creation.refused(wanted, "copying", needs, said)
    crash.point("volume.copy.converted")


def _die_with_us() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(running: subprocess.Popen[str]) -> str:
    """What qemu-img said at its end. An agent that died has nobody to tell: the copy ends with it, and the next agent
    begins it anew."""
    while True:
        try:
            return running.communicate(timeout=PARENT_LOOK)[1].strip()
        except subprocess.TimeoutExpired:
            if os.getppid() != _AGENT:
                running.kill()
                raise SystemExit("the agent is gone") from None
