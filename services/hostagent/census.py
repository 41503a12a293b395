"""What a heartbeat tells of this host and its VMs."""

from __future__ import annotations

import os
import socket
from typing import Any

from contracts import errors
from services.hostagent import accelerator
from services.hostagent.leasing import Leasing
from services.hostagent.place import Place
from services.hostagent.virt import Virt
from services.hostagent.vms import Vms


class Census:
    def __init__(self, place: Place, virt: Virt, vms: Vms, leasing: Leasing) -> None:
        self._place, self._virt, self._vms, self._leasing = place, virt, vms, leasing
        self._versions: tuple[str, str] | None = None

    def take(self) -> dict[str, Any]:
        """problem, facts, vms and lockspaces of contracts.hostagent.Heartbeat."""
        problem = None if self._virt.connected else f"libvirt is away: {self._virt.fault}"
        try:
            vms = self._vms.everyone()
        except (errors.HypervisorAway, errors.HypervisorRefused) as fault:
            problem, vms = str(fault), []
        return {"problem": problem, "facts": self._facts(), "vms": vms, "lockspaces": self._leasing.spaces.facts()}

    def _facts(self) -> dict[str, Any]:
        libvirt_, qemu = self._ask_versions()
        return {
            "cpus": os.cpu_count() or 0,
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "hostname": socket.gethostname(),
            "libvirt": libvirt_,
            "qemu": qemu,
            "kvm": accelerator.kvm(self._place.accelerator, self._place.emulator),
            "leases_fault": self._leasing.fault(),
        }

    def _ask_versions(self) -> tuple[str | None, str | None]:
        if self._versions is None and self._virt.connected:
            try:
                libvirt_ = self._virt.host("version", lambda connection: connection.getLibVersion(), 2.0)
                qemu = self._virt.host("version", lambda connection: connection.getVersion(), 2.0)
            except (errors.HypervisorAway, errors.HypervisorRefused):
                return None, None
            self._versions = _words(libvirt_), _words(qemu)
        return self._versions or (None, None)


def _words(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
