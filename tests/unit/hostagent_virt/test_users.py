"""Who has a disk plugged is asked of every QEMU at once: mute ones do not add up while the disk is held."""

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.hostagent import look, process, storing
from services.hostagent.locks import Named
from services.hostagent.monitor import Monitors

VMS = [f"aaaaaaaa-0000-4000-8000-00000000000{number}" for number in range(4)]
DISK = {"disk_id": "dddddddd-0000-4000-8000-000000000001", "domain": {"id": "s", "path": "/s"}}


class Mutes:
    """Monitors that take a connection and never say a word; how many at the same time is counted."""

    def __init__(self, folder: Path) -> None:
        self._lock, self._open, self.most = threading.Lock(), 0, 0
        self._listening = [socket.socket(socket.AF_UNIX) for _ in VMS]
        for vm_id, one in zip(VMS, self._listening, strict=True):
            one.bind(str(folder / vm_id))
            one.listen()
            threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            self._count(1)
            with client:
                while client.recv(4096):
                    pass
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._open += more
            self.most = max(self.most, self._open)

    def close(self) -> None:
        for one in self._listening:
            one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short name: a socket's path has 107 bytes, and pytest's own folders leave too few."""
    with tempfile.TemporaryDirectory(prefix="ds-") as made:
        yield Path(made)


@pytest.fixture
def mutes(folder: Path) -> Iterator[Mutes]:
    made = Mutes(folder)
    yield made
    made.close()


def test_mute_qemus_are_waited_for_together(mutes: Mutes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {vm_id: process.Process(1, 1, vm_id, ()) for vm_id in VMS}
    monkeypatch.setattr(process, "everyone", lambda: here)
    monkeypatch.setattr(look, "USERS_SECONDS", 1.0)
    eyes: Any = look.Eyes(None, Monitors(folder), None, None, None)  # type: ignore[arg-type]
    deleted: list[Any] = []
    storage = SimpleNamespace(delete_image=lambda *what, **_: deleted.append(what))
    parts: Any = SimpleNamespace(disks=Named(), eyes=eyes, storage=storage)
    copies: Any = SimpleNamespace(stop=lambda _: None)
    storing.Storing(parts, None, copies).delete_disk({"disk": DISK})  # type: ignore[arg-type]
    assert deleted == [(DISK["domain"], DISK["disk_id"])]
    assert mutes.most == len(VMS)
