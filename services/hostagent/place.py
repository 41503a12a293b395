"""Where the hypervisor process works: plain values that the door hands to its child as one JSON argument."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """`libvirt_stop` and `libvirt_start` are commands (argument lists); times are in seconds.

    `state_dir` must be short: a unix socket's path has at most 107 characters, and `<state_dir>/mon/<vm id>` is one.
    """

    host_id: str
    state_dir: str
    libvirt_uri: str = "qemu:///system"
    libvirt_run: str = "/run/libvirt/qemu"
    libvirt_stop: tuple[str, ...] = ("systemctl", "stop", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd.service")
    libvirt_start: tuple[str, ...] = ("systemctl", "start", "libvirtd.socket", "libvirtd.service")
    emulator: str = "/usr/bin/qemu-system-x86_64"
    accelerator: str = "auto"
    heartbeat: float = 5.0
    look_seconds: float = 8.0
    ask_seconds: float = 30.0
    storage_seconds: float = 20.0
    agree_seconds: float = 2.0
    pivot_tries: int = 3
    repair_tries: int = 3
    io_error_seconds: float = 80.0

    @property
    def socket(self) -> Path:
        """Where the hypervisor process listens."""
        return Path(self.state_dir) / "hypervisor.sock"

    @property
    def monitors(self) -> Path:
        """The folder of the second QMP sockets, one per VM, named by its id."""
        return Path(self.state_dir) / "mon"

    @property
    def journal(self) -> Path:
        return Path(self.state_dir) / "journal.json"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def from_json(text: str) -> Place:
    values = json.loads(text)
    for name in ("libvirt_stop", "libvirt_start"):
        if name in values:
            values[name] = tuple(values[name])
    return Place(**values)
