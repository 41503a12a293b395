"""Give a VM back to a libvirtd that lost it, or that names another leaf than QEMU writes to.

libvirtd is stopped, /run/libvirt/qemu/NAME.xml is put right (statusxml.py), what its death left in QEMU (concluded
jobs, nodes in no chain: they hold image locks) is cleared through our own monitor, and libvirtd is started again.
The guest is not touched and no QEMU is. Bounded tries per VM; after that a person is asked (VmUnsure).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

from chassis import crash, logs
from contracts import errors
from services.hostagent import blockgraph, domainxml, locks, monitor, process, statusxml
from services.hostagent.journal import Journal
from services.hostagent.monitor import Monitors
from services.hostagent.place import Place
from services.hostagent.virt import NoDomain, Virt

COMMAND_SECONDS = 40.0
GATE_SECONDS = 35.0
FORGET_SECONDS = 300.0  # tries are counted within this time
JOB_SECONDS = 5.0

_log = logs.get("repair")


class Repair:
    def __init__(self, place: Place, virt: Virt, monitors: Monitors, journal: Journal) -> None:
        self._place, self._virt, self._monitors, self._journal = place, virt, monitors, journal
        self._tries: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def mend(self, vm_id: str) -> None:
        """One try, if any is left. Raises VmUnsure when it did not help or may not be tried."""
        began = time.monotonic()
        try:
            self._refuse_vain(vm_id)
            if self._spent(vm_id):
                raise errors.VmUnsure(vm_id=vm_id, reason="libvirt could not be repaired; a person has to look")
            with self._virt.gate.alone(GATE_SECONDS):
                self._restart_around(vm_id)
        except (statusxml.Unmendable, monitor.Mute, monitor.Refused, locks.GateClosed, OSError) as fault:
            raise errors.VmUnsure(vm_id=vm_id, reason=f"the repair did not work: {fault}") from None
        if not self._virt.wait(COMMAND_SECONDS) or not self._knows(vm_id):
            raise errors.VmUnsure(vm_id=vm_id, reason="libvirt does not know the VM after the repair")
        _log.info("libvirt was repaired", vm_id=vm_id, seconds=round(time.monotonic() - began, 2))

    def _refuse_vain(self, vm_id: str) -> None:
        """libvirtd is not stopped for a QEMU that does not answer, or for a file that cannot be put right."""
        if process.find(vm_id) is not None:
            statusxml.correct(self._status(vm_id).read_text(encoding="utf-8"), self._monitors.view(vm_id).blocks)

    def _status(self, vm_id: str) -> Path:
        return Path(self._place.libvirt_run) / f"{domainxml.name_of(vm_id)}.xml"

    def _spent(self, vm_id: str) -> bool:
        with self._lock:
            now = time.monotonic()
            recent = [at for at in self._tries.get(vm_id, []) if now - at < FORGET_SECONDS]
            spent = len(recent) >= self._place.repair_tries
            self._tries[vm_id] = recent if spent else [*recent, now]
            return spent

    def finish(self) -> None:
        """Start libvirtd again if this process died between stopping and starting it."""
        if self._journal.get("repairs", "libvirtd"):
            _log.warning("a repair was cut off: libvirtd is started again")
            run(self._place.libvirt_start)
            self._journal.put("repairs", "libvirtd", None)

    def _restart_around(self, vm_id: str) -> None:
        self._journal.put("repairs", "libvirtd", vm_id)
        try:  # a stop that says that it failed may have stopped it
            run(self._place.libvirt_stop)
            self._virt.restarted()
            crash.point("repair.after_stop")
            if process.find(vm_id) is not None:
                self._correct(vm_id)
        finally:
            crash.point("repair.before_start")
            run(self._place.libvirt_start)
            self._journal.put("repairs", "libvirtd", None)

    def _correct(self, vm_id: str) -> None:
        """libvirtd does not run: nobody else talks to QEMU or writes the status file."""
        path = self._status(vm_id)
        text = path.read_text(encoding="utf-8")
        self._end_orphans(vm_id, text)
        blocks = self._monitors.view(vm_id).blocks
        self._delete_loose(vm_id, blocks)
        replace(path, statusxml.correct(text, blocks))

    def _end_orphans(self, vm_id: str, text: str) -> None:
        """Dismiss jobs that are over, and cancel those that libvirt's file does not know: nobody would end them."""
        for job in self._monitors.view(vm_id).blocks.jobs:
            if job.status != "concluded":
                if f"name='{job.id}'" in text or f'name="{job.id}"' in text:
                    continue
                self._monitors.ask(vm_id, "block-job-cancel", {"device": job.id, "force": True})
                self._wait_concluded(vm_id, job)
            with contextlib.suppress(monitor.Refused):  # dismissed meanwhile
                self._monitors.ask(vm_id, "job-dismiss", {"id": job.id})

    def _wait_concluded(self, vm_id: str, job: blockgraph.Job) -> None:
        limit = time.monotonic() + JOB_SECONDS
        while time.monotonic() < limit:
            now = {one["id"]: one["status"] for one in self._monitors.ask(vm_id, "query-jobs")}
            if now.get(job.id, "concluded") == "concluded":
                return
            time.sleep(0.05)
        raise statusxml.Unmendable(f"QEMU does not end its job {job.id}")

    def _delete_loose(self, vm_id: str, blocks: blockgraph.Blocks) -> None:
        """Format nodes first, they hold the storage nodes; QEMU refuses to delete what is in use."""
        for name in sorted(blocks.loose):
            if name.startswith("libvirt-"):
                with contextlib.suppress(monitor.Refused):
                    self._monitors.ask(vm_id, "blockdev-del", {"node-name": name})

    def _knows(self, vm_id: str) -> bool:
        if process.find(vm_id) is None:
            return True  # it ended meanwhile: nothing to know
        try:
            self._virt.look(vm_id, "state", lambda domain: domain.state())
        except NoDomain:
            return False
        except errors.Problem:
            return False
        return True


def run(command: tuple[str, ...]) -> None:
    """Raises OSError with what the command said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not end within {COMMAND_SECONDS:g} s") from None
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")


def replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")  # libvirtd reads only names that end in .xml
    mode = path.stat()
    with open(new, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode.st_mode & 0o777)
        os.fchown(file.fileno(), mode.st_uid, mode.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
