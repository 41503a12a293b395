"""Which parts of a disk a qcow2 file holds, by its own tables on the storage. Runs in the storage child.

For the proof that one volume holds all that another one does. Only tables are read, none of the data; offsets are
hostile input and are bounded before they are used.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contracts import errors
from services.hostagent import qcow2

_COPIED = 1 << 63  # says nothing about whether there is something
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_EXTENDED = 16  # the incompatible feature: entries of 16 bytes, each with a bitmap of its cluster's 32 parts
_PARTS = 32

Range = tuple[int, int]  # from, to; bytes of the disk


@dataclass
class _Tables:
    """An open qcow2 file. `first`: its first-level table; `step`: bytes of the disk behind one of that's entries."""

    file: int
    cluster: int
    extended: bool
    first: Sequence[int]
    size: int
    _last: tuple[int, list[int], list[int]] = (-1, [], [])

    @property
    def step(self) -> int:
        return self.cluster * (self.cluster // (16 if self.extended else 8))

    def held(self, number: int) -> tuple[list[int], list[int]]:
        """Where what is held behind one entry of the first-level table begins, and where it ends, in order. The last
        answer is kept: a layer in pieces is asked for with each of them."""
        if self._last[0] != number:
            found = list(_joined(self._ranges(number)))
            self._last = number, [start for start, _ in found], [stop for _, stop in found]
        return self._last[1:]

    def reach(self, at: int, end: int) -> int:
        """Up to where all from `at` on is held; `at` where nothing is."""
        while at < end:
            starts, stops = self.held(at // self.step)
            found = bisect.bisect_right(starts, at) - 1
            if found < 0 or stops[found] <= at:
                break
            at = stops[found]
        return at

    def _ranges(self, number: int) -> Iterator[Range]:
        offset = self.first[number] & _OFFSET if number < len(self.first) else 0
        if not offset:
            return
        start, table = number * self.step, os.pread(self.file, self.cluster, offset)
        words = _numbers(table)
        if self.extended:
            part = self.cluster // _PARTS
            for at in range(0, len(words) - 1, 2):
                yield from _of_parts(start + at // 2 * self.cluster, part, words[at], words[at + 1])
            return
        for at, word in enumerate(words):
            if word & ~_COPIED:
                yield start + at * self.cluster, start + (at + 1) * self.cluster


def missing(path: str, lower: str, disk_id: str, *, ground: str | None = None, raw: int | None = None) -> Range | None:
    """The first part of the disk that `lower` holds and neither `path` nor `ground` does, by their tables; None: there
    is none. `raw`: `lower` is a raw file of so many bytes, which holds all of them."""
    with contextlib.ExitStack() as files:
        holders = [files.enter_context(_opened(one, disk_id)) for one in (path, ground) if one]
        if raw is not None:
            return _gap((0, raw), holders)
        below = files.enter_context(_opened(lower, disk_id))
        for number in range(len(below.first)):
            for wanted in zip(*below.held(number), strict=True):
                gap = _gap(wanted, holders)
                if gap is not None:
                    return gap
    return None


def refuse_missing(path: str, lower: str, disk_id: str, *, raw: int | None = None) -> None:
    """Raises StorageFailed while the tables of `path` on the storage lack anything that `lower` has."""
    gap = missing(path, lower, disk_id, raw=raw)
    if gap is not None:
        reason = (
            f"bytes {gap[0]} to {gap[1]}, which {lower} holds, are not in its tables: QEMU has not written them out"
        )
        raise errors.StorageFailed(action="recording a pull", path=path, reason=reason)


def _gap(wanted: Range, holders: Sequence[_Tables]) -> Range | None:
    """`holders`: the uppermost first; what lies behind its end does not count."""
    at, end = wanted[0], min(wanted[1], holders[0].size)
    while at < end:
        reach = max(one.reach(at, end) for one in holders)
        if reach == at:
            return at, end
        at = reach
    return None


def _joined(ranges: Iterator[Range]) -> Iterator[Range]:
    """Neighbours as one."""
    last: Range | None = None
    for one in ranges:
        if last is not None and last[1] == one[0]:
            last = (last[0], one[1])
        else:
            if last is not None:
                yield last
            last = one
    if last is not None:
        yield last


def _of_parts(start: int, part: int, entry: int, bitmap: int) -> Iterator[Range]:
    if entry & 1 << 62:  # compressed: whole
        yield start, start + part * _PARTS
        return
    held = (bitmap & 0xFFFF_FFFF) | bitmap >> 32  # allocated, or reads as zeros
    for number in range(_PARTS):
        if held >> number & 1:
            yield start + number * part, start + (number + 1) * part


@contextlib.contextmanager
def _opened(path: str, disk_id: str) -> Iterator[_Tables]:
    """A qcow2 file with its first-level table read. Raises ChainBroken for one that is none, OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield _tables(file, path, disk_id)
    finally:
        os.close(file)


def _tables(file: int, path: str, disk_id: str) -> _Tables:
    head = os.pread(file, qcow2.HEAD_BYTES, 0)
    header = qcow2.parse(head, path, disk_id)
    if header is None or header.version == 1:
        raise errors.ChainBroken(disk_id=disk_id, reason=f"{path} is no qcow2 file")
    entries, offset = struct.unpack_from(">IQ", head, 36)
    if entries * 8 > qcow2.MAX_TABLE:
        raise errors.ChainBroken(disk_id=disk_id, reason=f"{path}: its first-level table has {entries} entries")
    extended = header.version == 3 and bool(struct.unpack_from(">Q", head, 72)[0] & _EXTENDED)
    first = _numbers(os.pread(file, entries * 8, offset))
    return _Tables(file, header.cluster_size, extended, first, header.virtual_size)


def _numbers(data: bytes) -> Sequence[int]:
    found = array("Q", data[: len(data) // 8 * 8])
    if sys.byteorder == "little":
        found.byteswap()
    return found
