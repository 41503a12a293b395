"""Leases of VMs on this host: gives each start a lease that libvirt then takes, and sees to it that no guest of ours
runs without the lease that it started with.

The VMs that were started with a lease are journalled (`leased`). Who holds what is sanlock's word, asked for in
storage children (sanlocks.py), never here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from chassis import logs
from contracts import errors
from services.hostagent import lock_setup, monitor, process
from services.hostagent.io_pauses import IoPauses
from services.hostagent.journal import Journal
from services.hostagent.lockspaces import Lockspaces
from services.hostagent.monitor import Monitors
from services.hostagent.place import Place
from services.hostagent.retake import Retake
from services.hostagent.storage import Storage
from services.hostagent.virt import NoDomain, Virt

GONE_SECONDS = 120.0  # that a VM's QEMU is missing before its lease is forgotten here: a start may be under way
START_SECONDS = 50.0  # to get a lease ready; after that nobody waits for the start any more, and none is made
KNOWN_SECONDS = 22.0  # that a host which has just joined may need to learn of the others
GLANCES = (0.0, 0.2, 0.5, 1.0)  # seconds before each look at a guest that seems to run without its lease
NAMED = 20  # VMs in the complaint of a heartbeat
_LOCK_WORDS = "Failed to acquire lock"  # libvirt's, in every version

Lease = dict[str, Any]  # contracts.hostagent.Lockspace
_log = logs.get("leases")


class Leasing:
    def __init__(self, place: Place, storage: Storage, journal: Journal, virt: Virt, monitors: Monitors) -> None:
        self._place, self._journal = place, journal
        self._virt, self._monitors = virt, monitors
        self._ended: dict[str, str] = {}
        self._missing: dict[str, float] = {}
        self._bare: list[str] = []
        self.spaces = Lockspaces(place, storage, journal, self._look_around)
        self.retake = Retake(self.spaces, journal)
        self._io_pauses = IoPauses(monitors, place.io_error_seconds)

    # -- a start --

    def prepare(self, vm_id: str, lease: Lease | None) -> dict[str, Any] | None:
        """Before the launch of a VM: what libvirt's XML needs of its lease. Raises LeasesUnfit, LockspaceNotJoined,
        LeaseHeld, LeaseFailed."""
        if lease is None:
            self._journal.put("leased", vm_id, None)
            return None
        element = self._prepare(vm_id, lease)
        self._journal.put("leased", vm_id, lease)
        self._ended.pop(vm_id, None)
        self._missing.pop(vm_id, None)
        return element

    @contextlib.contextmanager
    def telling(self, vm_id: str, lease: Lease | None) -> Iterator[None]:
        """Around what makes libvirt take the lease: a refusal names who has it. Raises LeaseHeld, LeaseFailed."""
        try:
            yield
        except errors.HypervisorRefused as refused:
            raise refused if lease is None else self._why_refused(vm_id, lease, refused) from None

    def confirm(self, vm_id: str, lease: Lease, offset: int) -> None:
        """Once the guest runs: a VM without its lease is destroyed. Raises LeaseNotTaken, LeaseFailed (dropped)."""
        if not self._is_right(vm_id, lease):
            self.destroy(vm_id, "libvirt did not take its lease")
            raise errors.LeaseNotTaken(vm_id=vm_id, host_id=self._place.host_id)
        self.refuse_dropped(vm_id, lease, offset)

    def _prepare(self, vm_id: str, lease: Lease) -> dict[str, Any]:
        began = time.monotonic()
        self._check_setup()
        self.spaces.wait_joined(lease)
        offset = self.spaces.ask("ensure_lease", lease["domain"], vm=vm_id)["offset"]
        self.refuse_held(vm_id, lease)
        if time.monotonic() - began > START_SECONDS:
            raise errors.StorageTimeout(path=lease["domain"]["path"], seconds=START_SECONDS)
        path = f"{lease['domain']['path'].rstrip('/')}/{lease['domain']['id']}/dom_md/xleases"
        return {"lockspace": lease["domain"]["id"], "key": vm_id, "path": path, "offset": offset}

    def refuse_dropped(self, vm_id: str, lease: Lease, offset: int) -> None:
        """A lease that was dropped between our look and libvirt's is one that nobody else will ask for."""
        try:
            now = self.spaces.ask("find_lease", lease["domain"], vm=vm_id)["offset"]
        except errors.Problem as problem:
            _log.warning("whether a VM's lease was dropped is unknown", vm_id=vm_id, reason=str(problem))
            return
        if now != offset:
            self.destroy(vm_id, "its lease was dropped while it was started")
            domain_id, reason = lease["domain"]["id"], "it was dropped while the VM was started"
            raise errors.LeaseFailed(vm_id=vm_id, domain_id=domain_id, action="taken", reason=reason)

    def _check_setup(self) -> None:
        fault = lock_setup.find_fault()
        if fault is not None:
            raise errors.LeasesUnfit(host_id=self._place.host_id, reason=fault.reason, advice=fault.advice)

    def refuse_held(self, vm_id: str, lease: Lease) -> None:
        """Raises LeaseHeld with who has the VM's lease, or may have it."""
        owner, limit = self.spaces.ask("lease_owner", lease["domain"], vm=vm_id), time.monotonic() + KNOWN_SECONDS
        while not owner["known"] and time.monotonic() < limit:
            time.sleep(0.5)
            owner = self.spaces.ask("lease_owner", lease["domain"], vm=vm_id)
        if owner["sanlock_id"] is not None:
            holder = "a process of this host" if owner["here"] else f"host number {owner['sanlock_id']}"
            raise errors.LeaseHeld(vm_id=vm_id, holder=holder, sanlock_id=owner["sanlock_id"])

    def _why_refused(self, vm_id: str, lease: Lease, refused: errors.HypervisorRefused) -> errors.Problem:
        """libvirt's words name no holder: the storage does."""
        reason = str(refused.fields.get("reason", ""))
        if _LOCK_WORDS not in reason:
            return refused
        try:
            self.refuse_held(vm_id, lease)
        except errors.Problem as problem:
            return problem
        domain_id = lease["domain"]["id"]
        return errors.LeaseFailed(vm_id=vm_id, domain_id=domain_id, action="taken", reason=reason)

    def offset_for_writer(self, vm_id: str, lease: Lease) -> int:
        """Where the lease is that an offline writer takes, with its lockspace joined. Raises as `starting`."""
        self.spaces.wait_joined(lease)
        return int(self.spaces.ask("ensure_lease", lease["domain"], vm=vm_id)["offset"])

    # -- while it runs --

    def keeps(self, vm_id: str) -> bool:
        """Whether only libvirt may resume this VM, because a lease has to be taken again. One whose lease another host
        holds by now has moved: what still stands here is destroyed.

        A libvirtd that dies between taking the lease and going on (or between stopping and giving it up) leaves a
        QEMU that stands still and holds it, and refuses every resume after that ("File exists", seen): that one may go
        on."""
        lease = self._journal.get("leased", vm_id)
        if lease is None or self._holds(vm_id, lease):
            return False
        with contextlib.suppress(errors.Problem):  # who cannot tell leaves it standing
            owner = self.spaces.ask("lease_owner", lease["domain"], vm=vm_id)
            if owner["sanlock_id"] is not None and owner["known"] and not owner["here"]:
                self.destroy(vm_id, f"it moved: host number {owner['sanlock_id']} holds its lease")
        return True

    def verify(self, vm_id: str) -> None:
        """After something happened to a VM: one that runs without the lease it was started with is destroyed."""
        lease = self._journal.get("leased", vm_id)
        if lease is not None and not self._is_right(vm_id, lease):
            self.destroy(vm_id, "it ran without its lease")

    def fault(self) -> str | None:
        """Why VMs with a lease cannot start here, and which ones run here that their leases do not protect."""
        bare = f"These VMs run here without the protection of their leases: {_named(self._bare)}."
        return " ".join(told for told in (self.spaces.fault, bare if self._bare else None) if told) or None

    def why_ended(self, vm_id: str) -> str:
        """Why we destroyed it, if we did."""
        return self._ended.get(vm_id, "")

    def drop(self, request: dict[str, Any]) -> dict[str, Any]:
        """The VM goes, and its lease with it. Raises LeaseHeld, LockspaceNotJoined."""
        self.spaces.wait_joined_again(request["domain"])
        self.spaces.ask("drop_lease", request["domain"], vm=request["vm_id"])
        self._journal.put("leased", request["vm_id"], None)
        return {}

    def _is_right(self, vm_id: str, lease: Lease) -> bool:
        """False only for a guest that was seen to run, several times, without holding its lease."""
        for pause in GLANCES:
            time.sleep(pause)
            found = process.find(vm_id)
            if found is None or not self._runs(vm_id):
                return True
            try:
                if self.spaces.ask("lease_held", lease["domain"], vm=vm_id, pid=found.pid)["held"]:
                    return True
            except errors.Problem as problem:
                _log.warning("whether a VM holds its lease is unknown", vm_id=vm_id, reason=str(problem))
                return True
        return False

    def _holds(self, vm_id: str, lease: Lease) -> bool:
        found = process.find(vm_id)
        try:
            return found is not None and self.spaces.ask("lease_held", lease["domain"], vm=vm_id, pid=found.pid)["held"]
        except errors.Problem:
            return False

    def _runs(self, vm_id: str) -> bool:
        try:
            return self._monitors.status(vm_id, 2.0) == "running"
        except (monitor.Mute, monitor.Refused):
            return False

    def destroy(self, vm_id: str, why: str) -> None:
        _log.error("a VM is destroyed", vm_id=vm_id, reason=why)
        self._ended[vm_id] = why
        try:
            self._virt.ask(vm_id, "destroy", lambda domain: domain.destroy())
        except (errors.Problem, NoDomain) as fault:
            _log.error("a VM could not be destroyed", vm_id=vm_id, reason=str(fault))

    def _look_around(self) -> None:
        """Now and then. A sanlock that died takes nobody's guest with it (that is a watchdog's to do): it is told."""
        self._forget_ended()
        for vm_id, seconds in self._io_pauses.overdue(self._journal.all("leased")):
            self.destroy(vm_id, f"an I/O error stopped it {seconds:.0f} s ago, and it has given up its lease")
        bare = self._unprotected(self._journal.all("leased"))
        if bare:  # seen twice: one that is just resumed takes its lease at this moment
            time.sleep(GLANCES[-1])
            bare = self._unprotected(
                {vm_id: lease for vm_id, lease in self._journal.all("leased").items() if vm_id in bare}
            )
        if bare != self._bare:
            self._bare = bare
            log = _log.error if bare else _log.info
            log("VMs run without the protection of their leases", vms=bare)

    def _unprotected(self, leased: dict[str, Lease]) -> list[str]:
        return sorted(vm_id for vm_id, lease in leased.items() if self._runs(vm_id) and not self._holds(vm_id, lease))

    def _forget_ended(self) -> None:
        """VMs that are gone from this host are no business of ours any more."""
        leased = self._journal.all("leased")
        gone = leased.keys() - process.everyone().keys() if leased else set()
        now = time.monotonic()
        self._missing = {vm_id: self._missing.get(vm_id, now) for vm_id in gone}
        for vm_id, since in self._missing.items():
            if now - since > GONE_SECONDS:
                self._journal.put("leased", vm_id, None)


def _named(vm_ids: list[str]) -> str:
    more = f" and {len(vm_ids) - NAMED} more" if len(vm_ids) > NAMED else ""
    return ", ".join(vm_ids[:NAMED]) + more
