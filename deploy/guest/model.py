"""The model of acknowledged blocks: what the guest said is safe, and whether the disk still holds it.

The guest (writer.c) puts sequence s of a disk into a block that follows from s, so "acknowledged up to s" tells what
every block must at least hold. Newer is right too: it was written and not yet acknowledged.

    acks = model.read_log(serial_log)
    result = model.check_image(acks, disk=0, image=leaf)     # qcow2 chain or raw, offline
    assert result.ok, result.summary()
"""

import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

BLOCK, STAMP = 4096, 64
PRIME = 2654435761  # as in writer.c
LAYOUT = struct.Struct("<8sIIQQQQ12xI")
LINE = re.compile(r"@(begin|a|w|bad|checked|error|up|off)\b ?(.*)")
SHOWN = 10  # findings in a summary
READ_BLOCKS = 1024


@dataclass
class Boot:
    """One start of the guest on one disk: it wrote from sequence `first` on; `safe` is the last acknowledged one."""

    ring: int
    order: str
    first: int
    safe: int

    def place(self, sequence: int) -> int:
        return (sequence - 1) % self.ring if self.order == "sequential" else sequence * PRIME % self.ring


@dataclass
class Disk:
    boots: list[Boot] = field(default_factory=list)
    longest_us: int = 0
    findings: list[str] = field(default_factory=list)
    read_back: int = 0  # blocks that the guest itself read and judged at its last start with drystone.check=1

    @property
    def safe(self) -> int:
        """The highest acknowledged sequence, 0 when nothing was."""
        return max((boot.safe for boot in self.boots if boot.safe >= boot.first), default=0)

    def expected(self) -> dict[int, int]:
        """Block number to the sequence that it must at least hold."""
        must: dict[int, int] = {}
        for boot in self.boots:
            for sequence in range(max(boot.first, boot.safe - boot.ring + 1), boot.safe + 1):
                must[boot.place(sequence)] = sequence
        return must


@dataclass
class Acks:
    """All that a serial log says, by disk number."""

    disks: dict[int, Disk] = field(default_factory=dict)
    boots: int = 0

    def safe(self, disk: int = 0) -> int:
        return self.disks[disk].safe if disk in self.disks else 0

    def longest_ms(self) -> float:
        """The longest time from a write to its acknowledgement in any boot on any disk, as the guest saw it.

        A guest's clock stands still while the VM is paused: stall.py sees that from outside.
        """
        return max((disk.longest_us for disk in self.disks.values()), default=0) / 1000

    def findings(self) -> list[str]:
        """What the log alone proves to be wrong."""
        return [finding for disk in self.disks.values() for finding in disk.findings]


@dataclass
class Result:
    """The outcome of a check; `ok` is only true if something was there to check."""

    disk: int
    acknowledged: int
    checked: int = 0
    lost: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.checked > 0 and not self.lost and not self.damaged

    def summary(self) -> str:
        """One sentence, and the first findings."""
        if not self.checked:
            return f"disk {self.disk}: nothing was acknowledged, nothing to check"
        head = (
            f"disk {self.disk}: {self.checked} blocks of {self.acknowledged} acknowledged writes read back, "
            f"{len(self.lost)} lost, {len(self.damaged)} damaged"
        )
        return "\n".join([head, *(self.lost + self.damaged)[:SHOWN]])


def read_log(path: Path) -> Acks:
    """Parse a guest's serial log; kernel messages and a last line that was cut off are passed over."""
    acks = Acks()
    text = path.read_bytes().decode("ascii", "replace")
    whole = text[: text.rfind("\n") + 1]
    for line in whole.splitlines():
        found = LINE.fullmatch(line.strip())
        if found:
            _take(acks, found.group(1), found.group(2).split())
    return acks


def check_image(acks: Acks, disk: int, image: Path, image_format: str = "qcow2") -> Result:
    """Read a disk's chain (through qemu-img, nobody may be writing to it) and compare it with what was promised."""
    with tempfile.NamedTemporaryFile(prefix="drystone-check-", dir=image.parent) as raw:
        words = ["qemu-img", "convert", "-f", image_format, "-O", "raw", "-S", "4096", str(image), raw.name]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise OSError(f"cannot read {image}: {done.stderr.strip()}")
        with open(raw.name, "rb") as content:
            return check_raw(acks, disk, content)


def check_raw(acks: Acks, disk: int, content: BinaryIO) -> Result:
    """As check_image, on the disk's plain content."""
    known = acks.disks.get(disk, Disk())
    must = known.expected()
    result = Result(disk, known.safe, len(must), lost=list(known.findings))
    ring = max((boot.ring for boot in known.boots), default=0)
    for number, block in _blocks(content, ring):
        found = judge(block, disk, number)
        if found is None:
            result.damaged.append(f"block {number} holds neither a stamp of this block nor nothing")
        elif found < must.get(number, 0):
            result.lost.append(f"block {number} holds sequence {found}, acknowledged was {must[number]}")
    return result


def judge(block: bytes, disk: int, number: int) -> int | None:
    """The sequence that a block holds: 0 for one never written, None for anything that the guest never wrote there."""
    if not block.strip(b"\0"):
        return 0
    stamp = block[:STAMP]
    if block != stamp * (BLOCK // STAMP):
        return None
    magic, of_disk, _, of_block, sequence, _, _, crc = LAYOUT.unpack(stamp)
    if magic != b"DRYSTONE" or of_disk != disk or of_block != number or crc != zlib.crc32(stamp[:-4]):
        return None
    return int(sequence)


def _blocks(content: BinaryIO, ring: int) -> Iterator[tuple[int, bytes]]:
    for first in range(0, ring, READ_BLOCKS):
        count = min(READ_BLOCKS, ring - first)
        piece = content.read(count * BLOCK).ljust(count * BLOCK, b"\0")
        for i in range(count):
            yield first + i, piece[i * BLOCK : (i + 1) * BLOCK]


def _take(acks: Acks, word: str, rest: list[str]) -> None:
    if word == "up":
        acks.boots += 1
        return
    if not rest or not rest[0].isdigit():
        return
    disk = acks.disks.setdefault(int(rest[0]), Disk())
    if word == "begin":
        _begin(disk, int(rest[0]), *rest[1:])
    elif word == "a" and disk.boots:
        disk.boots[-1].safe = int(rest[1])
    elif word == "w":
        disk.longest_us = max(disk.longest_us, int(rest[2]))
    elif word == "checked":
        disk.read_back = int(rest[1])
    elif word in ("bad", "error"):
        disk.findings.append(f"the guest saw on disk {' '.join(rest)}")


def _begin(disk: Disk, number: int, ring: str, order: str, first: str) -> None:
    if int(first) <= disk.safe:
        disk.findings.append(
            f"the guest started again and found disk {number} at sequence {int(first) - 1}, "
            f"acknowledged was {disk.safe}"
        )
    disk.boots.append(Boot(int(ring), order, int(first), int(first) - 1))
