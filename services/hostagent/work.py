"""What every ask that changes a chain needs, in one hand: the parts, and the locks in their order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from contracts import errors
from services.hostagent import claims, views
from services.hostagent.journal import Journal
from services.hostagent.leasing import Leasing
from services.hostagent.locks import Named, Still
from services.hostagent.look import Eyes
from services.hostagent.monitor import Monitors
from services.hostagent.place import Place
from services.hostagent.repair import Repair
from services.hostagent.storage import Storage
from services.hostagent.virt import Virt

TURN_SECONDS = 15.0  # how long an ask waits for another one on its disk or VM

Request = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    place: Place
    eyes: Eyes
    virt: Virt
    monitors: Monitors
    storage: Storage
    journal: Journal
    repair: Repair
    leasing: Leasing
    disks: Named
    vms: Named
    still: Still

    @contextlib.contextmanager
    def turn(self, request: Request, *, fenced: bool = True) -> Iterator[None]:
        """Hold the disk and its VM for one ask. Raises StaleClaim, DiskBusy. `fenced`: also refused after a cancel."""
        check = claims.take if fenced else claims.raise_to
        disk_id, flow = request["disk"]["disk_id"], request["claim"]["flow_id"]
        check(self.journal, disk_id, request["claim"])
        with self.disks.hold(disk_id, flow, TURN_SECONDS), self.vm(request.get("vm_id"), flow):
            # while it waited for its turn a newer claim or a cancel may have come
            check(self.journal, disk_id, request["claim"])
            yield

    @contextlib.contextmanager
    def vm(self, vm_id: str | None, holder: str) -> Iterator[None]:
        if vm_id is None:
            yield
            return
        with self.vms.hold(vm_id, holder, TURN_SECONDS):
            yield

    def sure(self, request: Request) -> tuple[views.Qemu, views.Libvirt]:
        """Both views of a running VM's disk; an unsure VM is repaired first. Raises as `Eyes.sure`."""
        vm_id, disk = request["vm_id"], request["disk"]
        try:
            return self.eyes.sure(vm_id, disk)
        except errors.VmUnsure:
            self.repair.mend(vm_id)
            return self.eyes.sure(vm_id, disk)
