"""Who refers to whom on a whole domain, read directly from the files. Runs in the storage child.

Nothing is deleted before this has looked at every file under images/: volumes, foreign qcow2 files, links. Files
are compared by device and inode, so that hard links, symbolic links and crooked paths make no difference. What
cannot be read stops the scan; what a file that nobody understands refers to is told in heads.py.

Images are looked at in parallel, because on NFS every file costs three round trips. Nothing is kept from one scan to
the next: the time goes into finding and opening the files, which no memory of their headers would save.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from contracts import errors
from services.hostagent import chain, domain, files, heads, layout, qcow2, volume

MAX_ENTRIES = 2_000_000  # files and folders on one domain
MAX_NESTING = 8  # folders below images/ in which foreign files are looked for

READERS = 16

_UUIDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Ref = dict[str, Any]
Inode = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """A file under images/. `image` and `volume` where it is a volume's data file."""

    path: str
    inode: Inode
    image: str | None = None
    volume: str | None = None
    backing: str | None = None

    @property
    def words(self) -> str:
        return f"volume {self.volume} of disk {self.image}" if self.volume else f"the file {self.shown_path}"

    @property
    def shown_path(self) -> str:
        """Foreign names may be no text at all."""
        return qcow2.shown(self.path)


@dataclass(frozen=True)
class Reference:
    """That one file refers to another: to an inode, by a path; or, where that leads nowhere and where the header is
    damaged, to the ids that stand there."""

    source: Found
    inode: Inode | None = None
    path: str = ""
    ids: frozenset[str] = frozenset()

    @property
    def real(self) -> str:
        """Where the path leads to."""
        return os.path.realpath(self.path)


@dataclass
class Survey:
    """All that one look at a domain found."""

    files: list[Found] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    volumes: list[tuple[str, chain.Volume]] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)

    def add(self, other: Survey) -> None:
        for mine, theirs in zip(self._lists(), other._lists(), strict=True):
            mine.extend(theirs)

    def _lists(self) -> tuple[list[Any], ...]:
        return self.files, self.references, self.volumes, self.leaving


def scan(domain: Ref) -> dict[str, Any]:
    """DomainScan."""
    place = _opened(domain)
    with files.guard("scan", place.images, place.id):
        found = survey(place)
    rows = [
        {
            **volume.facts(v),
            "disk_id": image,
            "path": place.file(image, v.id),
            "problem": str(v.trouble) if v.trouble else None,
        }
        for image, v in found.volumes
    ]
    foreign = [{"path": f.shown_path, "backing": f.backing} for f in found.files if f.volume is None]
    return {"volumes": rows, "foreign": foreign + [{"path": qcow2.shown(p), "backing": None} for p in found.leaving]}


def referrers(domain: Ref, image: str, volumes: list[str], but: list[str]) -> dict[str, Any]:
    """{"by": {volume: [words, ...]}}: who refers to each volume, apart from the volumes `but` of the same image."""
    place = _opened(domain)
    with files.guard("scan", place.images, place.id):
        found = survey(place)
        return {"by": {v: who_refers(found, place, image, v, but) for v in volumes}}


def _opened(ref: Ref) -> layout.Place:
    return domain.opened(ref)


def who_refers(found: Survey, place: layout.Place, image: str, volume_id: str, but: Collection[str] = ()) -> list[str]:
    """Who refers to a volume's file, by header, record, link or a further name of the same file; sorted words.

    `but`: volumes of the same image that may."""
    path = place.file(image, volume_id)
    known = {path, *(place.file(image, other) for other in but)}
    inode = inode_of(path)
    by = {
        r.source.words
        for r in found.references
        if r.source.path not in known and (volume_id in r.ids or (inode is not None and r.inode == inode))
    }
    by |= {f"{f.words} (another name of the same file)" for f in found.files if f.inode == inode and f.path != path}
    by |= {
        f"the metadata of volume {v.id} of disk {i}"
        for i, v in found.volumes
        if i == image and v.parent == volume_id and v.id not in {volume_id, *but}
    }
    return sorted(by)


def inode_of(path: str) -> Inode | None:
    """Device and inode of what a path leads to; None if it leads nowhere."""
    try:
        facts = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: with a NUL or half a character
        return None
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENAMETOOLONG}:
            raise
        return None
    return facts.st_dev, facts.st_ino


# -- the look ---------------------------------------------------------------------------------------------


def survey(place: layout.Place) -> Survey:
    """Look at every file under images/. OSError where one cannot be read: then nothing can be said."""
    seen = _Count(place)
    entries = sorted(_entries(place.images, seen), key=lambda e: e.name)
    found = Survey()
    with ThreadPoolExecutor(READERS) as readers:
        try:
            for part in readers.map(lambda entry: _look_at_entry(place, entry, seen), entries):
                found.add(part)
        except BaseException:
            readers.shutdown(cancel_futures=True)  # one that cannot be read is enough
            raise
    return found


def _look_at_entry(place: layout.Place, entry: os.DirEntry[str], seen: _Count) -> Survey:
    found = Survey()
    if entry.name.startswith(layout.REMOVED):
        found.leaving.append(entry.path)
    elif entry.is_dir(follow_symlinks=False):
        _look_at_image(place, entry.name, found, seen)
    else:
        _look_at_file(entry.path, found)
    return found


def _look_at_image(place: layout.Place, image: str, found: Survey, seen: _Count) -> None:
    volumes: dict[str, chain.Volume] = {}
    kept: dict[str, heads.Head] = {}  # so that each is read once

    def header(file: str, disk_id: str) -> qcow2.Header | None:
        kept[file] = heads.read(file, disk_id)
        return kept[file].sound()

    if layout.is_uuid(image):
        try:
            volumes = {v.id: v for v in volume.read_image(place, image, header)}
        except errors.NotFound:
            return  # deleted while we looked
        found.volumes.extend((image, v) for v in volumes.values())
    folder = place.image(image)
    for path, name in _walk(folder, seen, MAX_NESTING):
        if name.startswith(layout.REMOVED):
            found.leaving.append(path)
            continue
        on_top = len(path) == len(folder) + 1 + len(name)
        mine = on_top and layout.volume_of(name) in volumes
        if mine and name not in volumes:
            continue  # its .meta or .lease, or a new one of these
        if on_top and layout.are_variables(image, name) and not os.path.islink(path):
            continue  # UEFI variables refer to nothing
        owner = (image, name) if mine else (None, None)
        raw = mine and volumes[name].trouble is None and volumes[name].format == "raw"
        _look_at_file(path, found, owner, raw, kept.get(path))


def _look_at_file(
    path: str,
    found: Survey,
    owner: tuple[str, str] | tuple[None, None] = (None, None),
    raw: bool = False,
    head: heads.Head | None = None,
) -> None:
    """Note a file and what it refers to. A raw volume refers to nothing, whatever a guest wrote into it."""
    try:
        facts = os.lstat(path)
        file = Found(path, (facts.st_dev, facts.st_ino), *owner)
        if stat.S_ISLNK(facts.st_mode):
            found.files.append(Found(path, file.inode, backing=qcow2.shown(os.path.realpath(path))))
            found.references.append(_reference(file, path))
        elif not stat.S_ISREG(facts.st_mode) or raw:
            found.files.append(file)
        else:
            _note_head(file, head or heads.read(path, file.image or "none"), found)
    except FileNotFoundError:
        return  # deleted while we looked


def _note_head(file: Found, head: heads.Head, found: Survey) -> None:
    backing = qcow2.shown(head.names[0]) if head.names else None
    found.files.append(Found(file.path, file.inode, file.image, file.volume, backing))
    for name in head.names:
        for mentioned in qcow2.mentioned_files(name):
            found.references.append(_reference(file, os.path.join(os.path.dirname(file.path), mentioned)))
    if head.ids:
        found.references.append(Reference(file, ids=head.ids))


def _reference(file: Found, path: str) -> Reference:
    """By the inode that the path leads to. Where it leads nowhere, or to another file system, the same file may still
    be meant: by its path on another host, or through a second mount. Then the ids in the path count."""
    inode = inode_of(path)
    if inode is not None and inode[0] == file.inode[0]:
        return Reference(file, inode, path)
    return Reference(file, inode, path, frozenset(_UUIDS.findall(path)))


# -- bounded walking --------------------------------------------------------------------------------------


class _Count:
    """Counts entries, and stops a look that finds more than a domain can have. Threads share it."""

    def __init__(self, place: layout.Place) -> None:
        self._place = place
        self._numbers = itertools.count(1)

    def one_more(self) -> None:
        if next(self._numbers) > MAX_ENTRIES:
            reason = f"it has more than {MAX_ENTRIES} files"
            raise errors.StorageFailed(action="scan", path=self._place.images, reason=reason)


def _entries(folder: str, seen: _Count) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                seen.one_more()
                yield entry
    except FileNotFoundError:
        return  # deleted while we looked


def _walk(folder: str, seen: _Count, nesting: int) -> Iterator[tuple[str, str]]:
    """Path and name of everything in a folder that is no folder; deeper than `nesting` it is refused, not
    overlooked."""
    for entry in sorted(_entries(folder, seen), key=lambda e: e.name):
        if not entry.is_dir(follow_symlinks=False):
            yield entry.path, entry.name
        elif nesting == 0:
            raise errors.StorageFailed(action="scan", path=entry.path, reason="its folders are nested too deeply")
        else:
            yield from _walk(entry.path, seen, nesting - 1)
