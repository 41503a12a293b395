"""Who refers to whom on a whole domain, read directly from the files. Runs in the storage child.

Nothing is deleted before this has looked at every file under images/: volumes, foreign qcow2 files, links. Files
are compared by device and inode, so that hard links, symbolic links and crooked paths make no difference. What
cannot be read stops the scan; a damaged header counts as referring to every volume whose id stands in it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from contracts import errors
from services.hostagent import chain, domain, files, layout, qcow2, volume

MAX_ENTRIES = 2_000_000  # files and folders on one domain
MAX_NESTING = 8  # folders below images/ in which foreign files are looked for

_UUIDS = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

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
    """That one file refers to another: to an inode, by a path; or, with a damaged header, to the ids in it."""

    source: Found
    inode: Inode | None = None
    real: str = ""
    ids: frozenset[str] = frozenset()


@dataclass
class Survey:
    """All that one look at a domain found."""

    files: list[Found] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    volumes: list[tuple[str, chain.Volume]] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)


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
    return {"by": {volume: who_refers(found, place, image, volume, but) for volume in volumes}}


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
    except (FileNotFoundError, NotADirectoryError):
        return None
    return facts.st_dev, facts.st_ino


# -- the look ---------------------------------------------------------------------------------------------


def survey(place: layout.Place) -> Survey:
    """Look at every file under images/. OSError where one cannot be read: then nothing can be said."""
    found = Survey()
    seen = _Count(place)
    for entry in sorted(_entries(place.images, seen), key=lambda e: e.name):
        if entry.name.startswith(layout.REMOVED):
            found.leaving.append(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            _look_at_image(place, entry.name, found, seen)
        else:
            _look_at_file(Found(entry.path, _own_inode(entry)), found)
    return found


def _look_at_image(place: layout.Place, image: str, found: Survey, seen: _Count) -> None:
    volumes: dict[str, chain.Volume] = {}
    if layout.is_uuid(image):
        try:
            volumes = {v.id: v for v in volume.read_image(place, image)}
        except errors.NotFound:
            return  # deleted while we looked
        found.volumes.extend((image, v) for v in volumes.values())
    for entry in _walk(place.image(image), seen, MAX_NESTING):
        name = entry.name
        if name.startswith(layout.REMOVED):
            found.leaving.append(entry.path)
            continue
        mine = os.path.dirname(entry.path) == place.image(image) and layout.volume_of(name) in volumes
        if mine and name not in volumes:
            continue  # its .meta or .lease, or a new one of these
        owner = (image, name) if mine else (None, None)
        raw = mine and volumes[name].trouble is None and volumes[name].format == "raw"
        _look_at_file(Found(entry.path, _own_inode(entry), *owner), found, raw=raw)


def _look_at_file(file: Found, found: Survey, raw: bool = False) -> None:
    """Note a file and what it refers to. A raw volume refers to nothing, whatever a guest wrote into it."""
    facts = _lstat(file.path)
    if facts is None:
        return
    if stat.S_ISLNK(facts.st_mode):
        found.files.append(Found(file.path, file.inode, backing=qcow2.shown(os.path.realpath(file.path))))
        found.references.append(Reference(file, inode_of(file.path), os.path.realpath(file.path)))
        return
    if not stat.S_ISREG(facts.st_mode) or raw:
        found.files.append(file)
        return
    _look_at_header(file, found)


def _look_at_header(file: Found, found: Survey) -> None:
    try:
        header = volume.read_header(file.path, file.image or "none")
    except FileNotFoundError:
        return
    except errors.ChainBroken:
        head = files.read(file.path, qcow2.HEAD_BYTES)
        found.files.append(file)
        found.references.append(Reference(file, ids=frozenset(i.decode() for i in _UUIDS.findall(head))))
        return
    names = [n for n in (header.backing, header.data_file) if n] if header else []
    backing = qcow2.shown(names[0]) if names else None
    found.files.append(Found(file.path, file.inode, file.image, file.volume, backing))
    for name in names:
        for mentioned in qcow2.mentioned_files(name):
            target = os.path.join(os.path.dirname(file.path), mentioned)
            found.references.append(Reference(file, inode_of(target), os.path.realpath(target)))


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _own_inode(entry: os.DirEntry[str]) -> Inode:
    """Of the entry itself, not of what a link leads to; (0, 0) once it is gone."""
    facts = _lstat(entry.path)
    return (facts.st_dev, facts.st_ino) if facts else (0, 0)


# -- bounded walking --------------------------------------------------------------------------------------


class _Count:
    """Counts entries, and stops a look that finds more than a domain can have."""

    def __init__(self, place: layout.Place) -> None:
        self._place = place
        self._left = MAX_ENTRIES

    def one_more(self) -> None:
        self._left -= 1
        if self._left < 0:
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


def _walk(folder: str, seen: _Count, nesting: int) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder that is no folder; deeper than `nesting` it is refused, not overlooked."""
    for entry in sorted(_entries(folder, seen), key=lambda e: e.name):
        if not entry.is_dir(follow_symlinks=False):
            yield entry
        elif nesting == 0:
            raise errors.StorageFailed(action="scan", path=entry.path, reason="its folders are nested too deeply")
        else:
            yield from _walk(entry.path, seen, nesting - 1)
