"""The header of a qcow2 file, read from its first cluster. Pure: bytes in, facts or ChainBroken out.

Written against the published qcow2 specification and what QEMU 7.2 accepts. A header is hostile input: every
offset, length and count is bounded before it is used. What QEMU would refuse is refused; where QEMU would follow a
name (backing file, external data file), the name is told.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from contracts import errors

MAGIC = b"QFI\xfb"
HEAD_BYTES = 2 * 2**20  # the largest cluster: all that parse() may need
FIRST_BYTES = 4096  # enough to know the cluster's size

MAX_NAME = 1023  # QEMU's limit for a backing file name
MAX_EXTENSIONS = 1000  # QEMU writes about five
MAX_SIZE = 2**63 - 1
SECTOR = 512  # QEMU's block layer counts in these, whatever size a header names
MAX_TABLE = 32 * 2**20  # QEMU's limit for the first-level table

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_V2_LENGTH = 72
_V3_LENGTH = 104
_DIRTY, _CORRUPT, _DATA_FILE, _KNOWN = 1, 2, 4, 0b11111

_MAX_MENTIONED = 1000  # words of one name; it has at most MAX_NAME bytes
_QUOTED = re.compile(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'""", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

_END = 0
_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE_NAME = 0x44415441
_BITMAPS = 0x23852875


@dataclass(frozen=True)
class Header:
    """What a qcow2 header says. Names are as the file has them, `virtual_size` in bytes."""

    version: int
    virtual_size: int
    cluster_size: int
    backing: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    bitmaps: bool = False
    corrupt: bool = False
    dirty: bool = False


def is_qcow(head: bytes) -> bool:
    """Whether QEMU's probing would call it qcow or qcow2; anything else counts as raw."""
    return head[:4] == MAGIC


def span(head: bytes) -> int:
    """How many bytes of the file parse() wants, judged from its first FIRST_BYTES."""
    if not is_qcow(head) or len(head) < _V2_LENGTH:
        return 0
    bits = struct.unpack_from(">I", head, 20)[0]
    return 1 << bits if 9 <= bits <= 21 else FIRST_BYTES


def parse(head: bytes, file: str, disk_id: str) -> Header | None:
    """The header, or None for a raw file. ChainBroken names the file, the place in it and what is wrong there."""
    return read(lambda _limit: head, file, disk_id)


def read(fetch: Callable[[int], bytes], file: str, disk_id: str) -> Header | None:
    """As parse(), of a file whose first bytes `fetch` gives; the rest of its first cluster is fetched only where
    something lies there: with 64 KiB clusters that would be most of the time of a scan."""
    head = fetch(FIRST_BYTES)
    try:
        try:
            return _parse(head) if is_qcow(head) else None
        except _Cut:
            if not span(head) > len(head) == FIRST_BYTES:
                raise
        return _parse(fetch(min(span(head), HEAD_BYTES)))
    except _Wrong as wrong:
        raise errors.ChainBroken(disk_id=disk_id, reason=f"{file}: {wrong}") from None


class _Wrong(ValueError):
    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")


class _Cut(_Wrong):
    """Something lies behind the bytes that were given."""


def _parse(head: bytes) -> Header:
    version = _number(head, 4, ">I", "the version")
    if version == 1:
        return _parse_v1(head)
    if version not in {2, 3}:
        raise _Wrong("the version (byte 4)", f"{version} is unknown")
    if len(head) < _V2.size:
        raise _Cut("the header", f"it ends after {len(head)} bytes")
    fields = _V2.unpack_from(head)
    name_offset, name_length, cluster_bits, size = fields[2:6]
    if not 9 <= cluster_bits <= 21:
        raise _Wrong("the cluster size (byte 20)", f"2^{cluster_bits} is not between 2^9 and 2^21")
    cluster = 1 << cluster_bits
    if size > MAX_SIZE:
        raise _Wrong("the virtual size (byte 24)", f"{size} is too large")
    length, features = _features(head, cluster) if version == 3 else (_V2_LENGTH, 0)
    end = name_offset or cluster
    if name_offset > cluster:
        raise _Wrong("the backing file (byte 8)", f"its name at {name_offset} is outside the first cluster")
    backing = _name(head, name_offset, name_length, cluster)
    extensions = dict(_extensions(head, length, end))
    return Header(
        version=version,
        virtual_size=size - size % SECTOR,
        cluster_size=cluster,
        backing=backing,
        backing_format=_text(extensions.get(_BACKING_FORMAT)) if backing else None,
        data_file=(_text(extensions.get(_DATA_FILE_NAME)) or "?") if features & _DATA_FILE else None,
        bitmaps=_BITMAPS in extensions,
        corrupt=bool(features & _CORRUPT),
        dirty=bool(features & _DIRTY),
    )


def _parse_v1(head: bytes) -> Header:
    """The old qcow format has its backing file at the same place; it is read to learn whom it refers to."""
    offset = _number(head, 8, ">Q", "the backing file")
    length = _number(head, 16, ">I", "the backing file")
    size = _number(head, 24, ">Q", "the virtual size")
    if size > MAX_SIZE:
        raise _Wrong("the virtual size (byte 24)", f"{size} is too large")
    return Header(1, size - size % SECTOR, 4096, backing=_name(head, offset, length, HEAD_BYTES))


def _features(head: bytes, cluster: int) -> tuple[int, int]:
    """Header length and incompatible features of version 3."""
    if len(head) < _V3_LENGTH:
        raise _Cut("the header", f"it ends after {len(head)} bytes")
    features, _, _, _, length = _V3.unpack_from(head, _V2_LENGTH)
    if features & ~_KNOWN:
        raise _Wrong("the incompatible features (byte 72)", f"{features:#x} has bits that are unknown")
    if not _V3_LENGTH <= length <= cluster:
        raise _Wrong("the header length (byte 100)", f"{length} is not between {_V3_LENGTH} and {cluster}")
    return length, features


def _name(head: bytes, offset: int, length: int, cluster: int) -> str | None:
    if not offset:
        return None
    if length > min(MAX_NAME, cluster - offset):
        raise _Wrong("the backing file (byte 16)", f"its name has {length} bytes, at {offset}: too long")
    if offset + length > len(head):
        raise _Cut("the backing file (byte 8)", f"its name at {offset} is behind the end of the file")
    return _text(head[offset : offset + length])


def _extensions(head: bytes, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    for _ in range(MAX_EXTENSIONS):
        if offset >= end:
            return
        kind = _number(head, offset, ">I", "the header extensions")
        length = _number(head, offset + 4, ">I", "the header extensions")
        if kind == _END:
            return
        offset += 8
        if length > end - offset or offset + length > len(head):
            kind_of = _Wrong if length > end - offset else _Cut
            raise kind_of("the header extensions", f"the one at {offset - 8} has {length} bytes: it is cut off")
        if kind == _BACKING_FORMAT and length >= 16:
            raise _Wrong("the header extensions", f"the backing format at {offset - 8} has {length} bytes: too long")
        yield kind, head[offset : offset + min(length, 2 * MAX_NAME)]
        offset += (length + 7) & ~7
    raise _Wrong("the header extensions", f"there are more than {MAX_EXTENSIONS}")


def _number(head: bytes, offset: int, form: str, what: str) -> int:
    size = struct.calcsize(form)
    if offset + size > len(head):
        raise _Cut(f"{what} (byte {offset})", f"the file ends after {len(head)} bytes")
    return int(struct.unpack_from(form, head, offset)[0])


def _text(data: bytes | None) -> str | None:
    """As QEMU sees it: up to the first NUL; empty counts as none. Bytes that are no UTF-8 survive a round trip."""
    name = (data or b"").split(b"\0", 1)[0]
    return name.decode(errors="surrogateescape") or None


def first_table(head: bytes) -> tuple[int, int] | None:
    """Where the first-level table of a qcow2 file lies: offset and length in bytes. None for another file, and for one
    with internal snapshots, which have tables of their own. All zeros in it: no cluster was ever written."""
    if not is_qcow(head) or len(head) < _V2.size or _V2.unpack_from(head)[1] not in {2, 3}:
        return None
    entries, offset = _V2.unpack_from(head)[7:9]
    snapshots = _V2.unpack_from(head)[11]
    return None if snapshots or entries * 8 > MAX_TABLE else (offset, entries * 8)


# -- names in a header ------------------------------------------------------------------------------------


def shown(name: str) -> str:
    """The name, fit for a message."""
    if name.isascii() and name.isprintable():
        return name  # nearly all of them: a scan shows tens of thousands
    text = name.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def local_file(name: str) -> str | None:
    """The file name that QEMU would open, or None if the name is a protocol's or a JSON description."""
    if name.startswith("file:"):
        return name.removeprefix("file:") or None
    colon, slash = name.find(":"), name.find("/")
    return None if colon >= 0 and (slash < 0 or colon < slash) else name


def mentioned_files(name: str) -> tuple[str, ...]:
    """Every local file that the name may make QEMU open, and rather too many than too few: of a JSON description
    all its words, of a protocol's name (`blkdebug:rules:file`) what follows each colon."""
    found: list[str] = []
    todo = [name]
    while todo and len(found) < _MAX_MENTIONED:
        word = todo.pop()
        plain = local_file(word)
        if plain is not None:
            found.append(plain)
        elif word.startswith("json:"):
            todo.extend(_words(word.removeprefix("json:")))
        else:
            todo.append(word.partition(":")[2])
    return tuple(dict.fromkeys(f for f in found if f))


def _words(text: str) -> list[str]:
    """The strings in a JSON text as QEMU reads it: it takes single quotes too, where Python's parser gives up."""
    try:
        return list(_strings(json.loads(text)))
    except (ValueError, RecursionError):
        return [_unescaped(double or single) for double, single in _QUOTED.findall(text)]


def _strings(tree: Any) -> Iterator[str]:
    todo = [tree]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
        elif isinstance(value, str):
            yield value


def _unescaped(text: str) -> str:
    plain = _ESCAPE.sub(lambda found: _one_unescaped(found[1]), text)
    return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")  # halves become one again


def _one_unescaped(escape: str) -> str:
    return chr(int(escape[1:], 16)) if len(escape) > 1 else _ESCAPED.get(escape, escape)
