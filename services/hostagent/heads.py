"""What the head of one file says about other files. Runs in the storage child.

Our own reader (qcow2.py) answers for qcow and qcow2, and for raw, which refers to nothing. QEMU knows two more
formats that name other files, QED and VMDK: there, and where our reader gives up, `qemu-img info` is asked. Where
that gives up too, the file counts as referring to every id that stands in its head.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from contracts import errors
from services.hostagent import files, qcow2

ASK_SECONDS = 10.0  # for one file; its own header is all that qemu-img reads

# A hostile file can make qemu-img eat memory: 1 GiB of addresses and 10 s of processor, as oVirt bounds it.
_QEMU_IMG = ("prlimit", "--as=1073741824", "--cpu=10", "qemu-img", "info", "-U", "--output=json")

_UUIDS = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_QED_OR_VMDK = re.compile(rb"QED\0|KDMV|COWD|(?:[ \t\r]*\n|[ \t]*#[^\n]*\n)*version=")
_CALLS_OUT = re.compile(rb"json:|[a-z]:/|nbd:", re.IGNORECASE)  # asked about such a file, qemu-img would go there


@dataclass(frozen=True)
class Head:
    """`header` of a qcow or qcow2 file, or the `trouble` why it has none that can be trusted; neither: not qcow.

    `names`: the files it refers to, as it names them. `ids`: that stand in a head which nobody understands."""

    header: qcow2.Header | None = None
    trouble: errors.ChainBroken | None = None
    names: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()

    def sound(self) -> qcow2.Header | None:
        """The header; raises the trouble."""
        if self.trouble is not None:
            raise self.trouble
        return self.header


def read(file: str, disk_id: str) -> Head:
    """OSError where the file cannot be read. `disk_id` is for the words of the trouble."""
    kept: list[bytes] = []

    def fetch(limit: int) -> bytes:
        kept.append(files.read(file, limit))
        return kept[-1]

    try:
        header = qcow2.read(fetch, file, disk_id)
    except errors.ChainBroken as broken:
        return _ask(file, broken)
    if header is None:
        return _ask(file, None) if _QED_OR_VMDK.match(kept[0]) else Head()
    return Head(header, names=tuple(n for n in (header.backing, header.data_file) if n))


def _ask(file: str, trouble: errors.ChainBroken | None) -> Head:
    """What qemu-img says of a file that our reader does not understand; else the ids in its head."""
    head = files.read(file, qcow2.HEAD_BYTES)
    ids = frozenset(i.decode() for i in _UUIDS.findall(head))
    told = None if _CALLS_OUT.search(head) else _told(file)
    if told is None:
        return Head(trouble=trouble, ids=ids)
    details = told.get("format-specific", {}).get("data", {})
    extents = details.get("extents", [])
    names = [told.get("backing-filename"), details.get("data-file"), *(e.get("filename") for e in extents)]
    return Head(trouble=trouble, names=tuple(n for n in names if n and n != file), ids=ids)


def _told(file: str) -> dict[str, Any] | None:
    """`qemu-img info` of a file, without what lies below it; None if it refuses."""
    try:
        done = subprocess.run([*_QEMU_IMG, file], capture_output=True, timeout=ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None
