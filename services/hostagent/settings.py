"""What an administrator may set for the agent of a host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from chassis.settings import FrameSettings, between, one_of, setting
from services.hostagent import layout
from services.hostagent.place import Place

STATE_DIR_LIMIT = 64  # characters: `<state_dir>/mon/<vm id>` is a unix socket's path, which has at most 107


@dataclass(frozen=True)
class HostagentSettings(FrameSettings):
    section: ClassVar[str] = "hostagent"

    host_id: str = setting(
        doc="this host's id as the inventory knows it",
        check=lambda value: None if layout.is_uuid(value) else "must be a lower-case UUID",
    )
    state_dir: Path = setting(
        Path("/var/lib/drystone"),
        "folder for files that must survive, and for sockets",
        check=lambda value: None if len(str(value)) <= STATE_DIR_LIMIT else f"is over {STATE_DIR_LIMIT} characters",
    )
    heartbeat: float = setting(5.0, "seconds between two heartbeats", check=between(0.2, 60))
    libvirt_uri: str = setting("qemu:///system", "libvirt on this host")
    libvirt_run: Path = setting(Path("/run/libvirt/qemu"), "where libvirtd keeps the status files of running domains")
    libvirt_stop: tuple[str, ...] = setting(
        ("systemctl", "stop", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service"),
        "command that stops libvirtd for a repair, guests run on",
    )
    libvirt_start: tuple[str, ...] = setting(
        ("systemctl", "start", "libvirtd.socket", "libvirtd.service"), "command that starts it again"
    )
    accelerator: str = setting(
        "auto", "kvm, tcg, or auto: KVM where a probe shows that it works", check=one_of("auto", "kvm", "tcg")
    )
    emulator: Path = setting(Path("/usr/bin/qemu-system-x86_64"), "QEMU")
    storage_seconds: float = setting(20.0, "longest wait for one storage call", check=between(1, 600))
    pivot_tries: int = setting(3, "refused pivots before a merge of an active layer is cancelled", check=between(1, 20))
    repair_tries: int = setting(3, "repairs of libvirt for one VM in five minutes", check=between(1, 20))

    io_error_seconds: float = setting(
        80.0,
        "how long a VM with a lease may stand still after an I/O error (not: a full storage) before it is ended",
        check=between(5, 3600),
    )

    def place(self) -> Place:
        """What the hypervisor process needs of them."""
        return Place(
            host_id=self.host_id,
            state_dir=str(self.state_dir),
            libvirt_uri=self.libvirt_uri,
            libvirt_run=str(self.libvirt_run),
            libvirt_stop=self.libvirt_stop,
            libvirt_start=self.libvirt_start,
            emulator=str(self.emulator),
            accelerator=self.accelerator,
            heartbeat=self.heartbeat,
            storage_seconds=self.storage_seconds,
            pivot_tries=self.pivot_tries,
            repair_tries=self.repair_tries,
            io_error_seconds=self.io_error_seconds,
        )
