"""A disk in memory: rates on it repeat, while those of a shared disk come and go by the minute."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SHARED = Path("/dev/shm")  # noqa: S108  the kernel's own place for files in memory


@contextlib.contextmanager
def disk(gib: int) -> Iterator[Path]:
    """The folder of an empty ext4 of so many GiB, on a loop device over a sparse file in memory."""
    room = Path(tempfile.mkdtemp(prefix="ds-bench-", dir=SHARED))
    image, folder = room / "disk", room / "mounted"
    folder.mkdir()
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, room)
        with image.open("wb") as file:
            file.truncate(gib * 2**30)
        _run("mkfs.ext4", "-q", "-E", "nodiscard", image)
        _run("mount", "-o", "loop,discard", image, folder)
        undo.callback(_run, "umount", folder)
        yield folder


def _run(*words: str | Path) -> None:
    subprocess.run([*map(str, words)], check=True, timeout=60)
