"""Proof that a runner of flows on this machine is dead, so that its claims are taken over at once.

Each runner keeps a lock on a file of its own in the service's state folder; the kernel lets go of it when the process
ends, however it ends, and never before: one that is only frozen keeps its claims until their lease is over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

_SUFFIX = ".runner"


class Tenure:
    """The lock of the runner `owner` (its name holds one "/") in `folder`, held from `begin` to the process's end."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder, self._owner = folder, owner
        self._held: int | None = None

    def begin(self) -> None:
        """Take our own lock. Raises OSError."""
        if self._held is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / (self._owner.replace("/", "~") + _SUFFIX)
        new = path.with_suffix(".new")  # nobody looks at it before it is locked
        self._held = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        os.write(self._held, self._owner.encode())
        os.rename(new, path)

    def dead(self) -> dict[str, Path]:
        """Owners that have ended, with their files: `forget` one once its claims are free."""
        found = {}
        for path in self._folder.glob(f"*{_SUFFIX}"):
            owner = _free(path)
            if owner is not None:
                found[owner] = path
        return found

    @staticmethod
    def forget(path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # another heir was faster
            path.unlink()


def _free(path: Path) -> str | None:
    """The owner in the file, None while it lives."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.read(file, 4096).decode()
    except BlockingIOError:
        return None
    finally:
        os.close(file)
