"""Named crash points: tests kill a process with SIGKILL at exactly one of them.

Set `DRYSTONE_CRASH` to a point's name, or `DRYSTONE_CRASH_FILE` to a file whose first line names it. The file is
renamed before the kill, so that it fires once and the restarted process lives. With the word `hold` behind the name
the process stops there (SIGSTOP) instead, so that something else can die at exactly this moment; its pid is then in
the second line. With the word `pass` it goes on untouched, and the renaming tells when it came by.
"""

from __future__ import annotations

import os
import signal


def point(name: str) -> None:
    """Die here if this point was chosen; costs two look-ups in a dictionary when none was."""
    if os.environ.get("DRYSTONE_CRASH") == name:
        _die()
    path = os.environ.get("DRYSTONE_CRASH_FILE")
    if not path:
        return
    named, _, how = _named_in(path).partition(" ")
    if named == name and _consume(path) and how != "pass":
        _hold(path) if how == "hold" else _die()


def _named_in(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _consume(path: str) -> bool:
    try:
        os.rename(path, path + ".fired")
    except FileNotFoundError:
        return False  # another process was faster; it dies, we go on
    return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hold(path: str) -> None:
    with open(path + ".fired", "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    os.kill(os.getpid(), signal.SIGSTOP)
