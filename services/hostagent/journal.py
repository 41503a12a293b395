"""What the hypervisor process must remember across restarts: one small JSON file, replaced whole and synced.

    claims   {disk id: {flow id: {"number": n, "cancelled": n}}}   highest claim numbers seen
    jobs     {disk id: {...}}     block jobs that we began and whose end we have not seen
    pauses   {vm id: {...}}       guests that we paused around a pivot
    freezes  {vm id: {...}}       guests whose file systems we froze around a snapshot
    repairs  {"libvirtd": vm id}  libvirtd is stopped, and ours to start again
    lockspaces  {domain id: {...}}  lockspaces that this host joins
    leased   {vm id: {...}}       VMs that were started with a lease
    openings {vm id: {...}}       starts with a lease: what QEMU opened, until it is certain that the guest may run

A write is on the disk when the method returns. Thread-safe.
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECTIONS = ("claims", "jobs", "pauses", "freezes", "repairs", "lockspaces", "leased", "openings")


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._content: dict[str, dict[str, Any]] = _read(path)

    def get(self, section: str, key: str) -> Any:
        """A copy of one entry, or None."""
        with self._lock:
            return copy.deepcopy(self._content[section].get(key))

    def all(self, section: str) -> dict[str, Any]:
        with self._lock:
            return copy.deepcopy(self._content[section])

    def put(self, section: str, key: str, value: Any) -> None:
        """Set one entry durably; None removes it."""
        self.change(section, lambda entries: _set(entries, key, value))

    def change(self, section: str, edit: Callable[[dict[str, Any]], None]) -> None:
        """Let `edit` change a section and write the file; if that fails the old content stays in force."""
        with self._lock:
            content = copy.deepcopy(self._content)
            edit(content[section])
            if content == self._content:
                return
            _write(self._path, content)
            self._content = content


def _set(entries: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        entries.pop(key, None)
    else:
        entries[key] = value


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """A file that cannot be parsed stops the agent: guessing about pauses and claims would be worse."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = {}
    return {section: content.get(section, {}) for section in SECTIONS}


def _write(path: Path, content: dict[str, Any]) -> None:
    new = path.with_name(path.name + ".new")
    with open(new, "w", encoding="utf-8") as file:
        json.dump(content, file, separators=(",", ":"))
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
