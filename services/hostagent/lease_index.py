"""The index of user leases in `dom_md/xleases`: which VM has its lease at which offset. The family's format, read and
written past the page cache, in whole blocks. Runs in the storage child and its lease writer.

    1 MiB     header (512 bytes), then 3960 records of 64 bytes
    (3 + n) MiB   the sanlock resource that record n names

Only the holder of the domain's SDM lease writes it. A record lies within one sector: it is there or it is not.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

from services.hostagent import layout

BLOCK = 4096  # a multiple of every sector size; header and records are 62 of them
START = layout.MiB
SIZE = layout.INDEX_HEADER.size + layout.LEASE_RECORDS * layout.INDEX_RECORD.size
FIRST = 3  # slots before the first user lease: lockspace (unused), index, sanlock's own
_MAGIC = 0x12152016


class Unreadable(Exception):
    """What lies there is no index of this lockspace."""


@dataclass(frozen=True)
class Index:
    """The bytes of one index."""

    data: bytes

    def find(self, name: str) -> int | None:
        """The offset of this VM's lease in the file, None where it has none."""
        for number in range(layout.LEASE_RECORDS):
            has, offset = self._record(number)
            if has == name:
                if offset != offset_of(number):
                    raise Unreadable(f"record {number} of {name} names the offset {offset}, not {offset_of(number)}")
                return offset
        return None

    def free(self) -> Iterator[int]:
        """Numbers of the records that name nobody."""
        return (number for number in range(layout.LEASE_RECORDS) if not self._record(number)[0])

    def _record(self, number: int) -> tuple[str, int]:
        size = layout.INDEX_RECORD.size
        name, offset, *_ = layout.INDEX_RECORD.unpack_from(self.data, layout.INDEX_HEADER.size + number * size)
        text = name.rstrip(b"\0").decode("ascii", "replace")
        return text, int(offset) if offset.isdigit() else -1


def parse(data: bytes, lockspace: str) -> Index:
    """Raises Unreadable with what is wrong."""
    if len(data) < SIZE:
        raise Unreadable(f"it has {len(data)} bytes, an index has {SIZE}")
    magic, version, name, _, updating, _ = layout.INDEX_HEADER.unpack_from(data)
    if magic != _MAGIC or version != b"0001":
        raise Unreadable("its magic or version is not an index's")
    if name.rstrip(b"\0") != lockspace.encode():
        raise Unreadable(f"it belongs to the lockspace {name.rstrip(bytes(1))[:48]!r}")
    if updating != b"-":
        raise Unreadable("it was being rebuilt when its writer died")
    ends = data[layout.INDEX_HEADER.size - 1 : SIZE : layout.INDEX_RECORD.size]
    if ends.strip(b"\n"):  # another block size, or a torn write
        raise Unreadable(f"record {_first_other(ends[1:])} has no end: it is torn, or an index of another block size")
    return Index(data)


def _first_other(ends: bytes) -> int:
    return len(ends) - len(ends.lstrip(b"\n"))


def offset_of(number: int) -> int:
    """Where the resource of this record lies."""
    return (FIRST + number) * layout.MiB


def number_of(offset: int) -> int:
    return offset // layout.MiB - FIRST


def record(name: str, number: int) -> bytes:
    """A record's bytes; an empty name is a free one, which has no offset."""
    offset = offset_of(number) if name else 0
    return layout.INDEX_RECORD.pack(name.encode(), b"%011d" % offset, b"-", b"-", b"\n")


def with_record(data: bytes, number: int, name: str) -> tuple[int, bytes]:
    """The block of the index that changes, as its offset within the index and its new bytes."""
    at = layout.INDEX_HEADER.size + number * layout.INDEX_RECORD.size
    start = at - at % BLOCK
    block = bytearray(data[start : start + BLOCK])
    block[at - start : at - start + layout.INDEX_RECORD.size] = record(name, number)
    return start, bytes(block)


def read(path: str, lockspace: str) -> Index:
    """Raises Unreadable, OSError."""
    return parse(read_direct(path, START, SIZE), lockspace)


def put(path: str, index: Index, number: int, name: str) -> None:
    """Write one record. The caller holds SDM and read the index under it."""
    start, block = with_record(index.data, number, name)
    write_direct(path, START + start, block)


# -- past the page cache: other hosts must see it, and we must see theirs ----------------------------------


def read_direct(path: str, offset: int, size: int) -> bytes:
    """`offset` and `size` are multiples of BLOCK. A file that ends before gives less."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, size) as buffer:  # aligned as O_DIRECT wants it
            got = os.preadv(descriptor, [buffer], offset)
            return buffer[:got]
    finally:
        os.close(descriptor)


def write_direct(path: str, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            written = os.pwritev(descriptor, [buffer], offset)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes were written")
    finally:
        os.close(descriptor)
