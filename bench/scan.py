"""The scan of a whole domain before a commit and before a delete, on 10,000 volumes in chains of four.

The plain thing is `qemu-img info` of each volume: 100 of them are asked in each round and the time is taken times a
hundred. The second line is what a commit or a deletion waits for: the scan, who refers to its volume, and the way to
the storage's child and back. The third is the scan where opening a file takes a millisecond longer, as it does over
NFS, beside that scan with a single reader.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.lines import Line, Ratio, in_turns
from services.hostagent import domain, files, layout, scan
from services.hostagent.storage import Storage

VOLUMES, DEPTH, ASKED, ROUNDS = 10_000, 4, 100, 3
ROUND_TRIPS = 0.001  # seconds
_NAME = "n" * 36  # as long as a volume's


def run() -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="drystone-bench-", dir="/var/tmp") as folder:
        place = layout.Place(folder, str(uuid.uuid4()))
        paths = _fill(place)
        asked = itertools.cycle(paths)
        scanned = Line("scan of 10,000 volumes / qemu-img info of each", "s", wanted=Ratio(0.1))
        in_turns(scanned, lambda: _scan(place), lambda: _qemu_img([next(asked) for _ in range(ASKED)]), ROUNDS)
        slow = Line("the scan, 1 ms to open a file / one reader", "s", wanted=Ratio(0.2))
        in_turns(slow, lambda: _slow_scan(place, scan.READERS), lambda: _slow_scan(place, 1), 1)
        return [scanned, _waited(place, asked), slow]


def _scan(place: layout.Place) -> float:
    begun = time.perf_counter()
    found = scan.survey(place)
    took = time.perf_counter() - begun
    assert len(found.volumes) == VOLUMES
    return took


def _waited(place: layout.Place, asked: Iterator[str]) -> Line:
    line = Line("who refers to a volume of 10,000 / qemu-img info", "s", wanted=Ratio(0.1))
    with contextlib.closing(Storage(60.0)) as storage:
        return in_turns(
            line,
            lambda: _referrers(storage, place, next(asked)),
            lambda: _qemu_img([next(asked) for _ in range(ASKED)]),
            ROUNDS,
        )


def _referrers(storage: Storage, place: layout.Place, path: str) -> float:
    image, volume = Path(path).parts[-2:]
    begun = time.perf_counter()
    by = storage.referrers({"id": place.id, "path": place.path}, image, [volume])
    took = time.perf_counter() - begun
    assert set(by) == {volume}, by
    return took


def _slow_scan(place: layout.Place, readers: int) -> float:
    real, usual = files.read, scan.READERS

    def slow_read(path: str, limit: int) -> bytes:
        time.sleep(ROUND_TRIPS)
        return real(path, limit)

    files.read, scan.READERS = slow_read, readers
    try:
        return _scan(place)
    finally:
        files.read, scan.READERS = real, usual


def _qemu_img(paths: list[str]) -> float:
    begun = time.perf_counter()
    for path in paths:
        subprocess.run(["qemu-img", "info", "-U", "--output=json", path], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * VOLUMES / len(paths)


def _fill(place: layout.Place) -> list[str]:
    """Make the domain. qemu-img makes one volume of each kind; the others are copies that name another parent."""
    domain.create({"id": place.id, "path": place.path}, "bench", str(uuid.uuid4()))
    base, top = _made(place), _made(place, "-u", "-b", _NAME, "-F", "qcow2")
    return [path for _ in range(VOLUMES // DEPTH) for path in _chain(place, base, top)]


def _made(place: layout.Place, *options: str) -> bytes:
    path = Path(place.path, "made")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "64M"], check=True)
    return path.read_bytes()


def _chain(place: layout.Place, base: bytes, top: bytes) -> list[str]:
    image, below, paths = str(uuid.uuid4()), None, []
    os.mkdir(place.image(image))
    for _ in range(DEPTH):
        volume = str(uuid.uuid4())
        paths.append(place.file(image, volume))
        _write_sparse(paths[-1], top.replace(_NAME.encode(), below.encode()) if below else base)
        meta = layout.new_volume(
            domain_id=place.id, image=image, parent=below, capacity=2**26, format="cow", description="", created=1
        )
        Path(paths[-1] + ".meta").write_bytes(layout.write_volume(meta))
        Path(paths[-1] + ".lease").touch()
        below = volume
    return paths


def _write_sparse(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        for start in range(0, len(data), 4096):
            if part := data[start : start + 4096].rstrip(b"\0"):
                file.seek(start)
                file.write(part)
        file.truncate(len(data))
