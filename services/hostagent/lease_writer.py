"""The one who writes leases: a short-lived process that holds the domain's SDM lease for what it writes, and nothing
else. sanlock kills it, and nobody else, when the storage goes meanwhile.

    create   under SDM: look in the index -> read the resource -> write it if it is another's or none -> record
    drop     under SDM and the VM's own lease: free the record; the resource stays, free, and is taken over one day

A resource that has the right name is never written again: writing one that is held wipes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import layout, lease_index

SECONDS = 25.0  # for one of these processes
SDM_SECONDS = 10.0  # that another host may write
FOREIGN = "?"  # in place of the name of another lockspace's resource
_HELD = (errno.EEXIST, errno.EAGAIN, errno.EBUSY, -243)  # here, or on another host

Ref = dict[str, Any]


def run(op: str, domain: Ref, vm: str) -> dict[str, Any]:
    """Do it in a process of its own. Raises LeaseHeld, LeaseFailed, StorageTimeout."""
    words = [sys.executable, "-m", "services.hostagent.lease_writer", json.dumps([op, domain, vm])]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise errors.StorageTimeout(path=domain["path"], seconds=SECONDS) from None
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        reason = f"its writer ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        raise errors.LeaseFailed(vm_id=vm, domain_id=domain["id"], action="written", reason=reason) from None
    if "error" in reply:
        raise errors.from_wire(reply["error"])
    return dict(reply["ok"])


class Writer:
    def __init__(self, domain: Ref, vm: str) -> None:
        import sanlock  # only the process that holds leases registers itself

        self._sanlock, self._domain, self._vm = sanlock, domain, vm
        dom_md = layout.Place(domain["path"], domain["id"]).dom_md
        self._leases, self._path = f"{dom_md}/leases", f"{dom_md}/xleases"
        self._space = domain["id"].encode()
        self._connection = sanlock.register()

    def create(self) -> dict[str, Any]:
        with self._holding("SDM", self._leases, layout.MiB, SDM_SECONDS):
            index = lease_index.read(self._path, self._domain["id"])
            offset = index.find(self._vm)
            if offset is not None:  # another host was quicker
                if self._name_at(offset) != self._vm:
                    raise self._failed(f"the index names offset {offset}, where another one's lease is")
                return {"offset": offset}
            number = self._write_resource(index)
            crash.point("lease.after_resource")
            lease_index.put(self._path, index, number, self._vm)
            crash.point("lease.after_record")
            return {"offset": lease_index.offset_of(number)}

    def drop(self) -> dict[str, Any]:
        with self._holding("SDM", self._leases, layout.MiB, SDM_SECONDS):
            index = lease_index.read(self._path, self._domain["id"])
            offset = index.find(self._vm)
            if offset is None:
                return {}
            if self._name_at(offset) != self._vm:  # nobody can hold what is not there
                lease_index.put(self._path, index, lease_index.number_of(offset), "")
                return {}
            with self._holding(self._vm, self._path, offset, 0.0):
                lease_index.put(self._path, index, lease_index.number_of(offset), "")
        return {}

    def _write_resource(self, index: lease_index.Index) -> int:
        """The number of a free record, whose slot has this VM's resource now."""
        for number in index.free():
            offset = lease_index.offset_of(number)
            name = self._name_at(offset)
            if name == self._vm:  # a writer died before it could record it
                return number
            disks = [(self._path, offset)]
            if name == FOREIGN:
                continue
            if name and self._sanlock.read_resource_owners(self._space, name.encode(), disks):
                continue  # a dropped VM's lease that somebody holds all the same: theirs
            self._sanlock.write_resource(self._space, self._vm.encode(), disks)
            return number
        raise self._failed(f"all {layout.LEASE_RECORDS} leases of the domain are in use")

    def _name_at(self, offset: int) -> str:
        """Whose resource lies there; empty where none does."""
        try:
            found = self._sanlock.read_resource(self._path, offset)
        except self._sanlock.SanlockException as fault:
            if fault.errno in (-223, errno.EMSGSIZE, errno.ENOENT):  # no magic; behind the end of the file
                return ""
            raise
        return str(found["resource"].decode()) if found["lockspace"] == self._space else FOREIGN

    @contextlib.contextmanager
    def _holding(self, name: str, path: str, offset: int, seconds: float) -> Iterator[None]:
        """Hold one lease; another holder is waited for so many seconds."""
        disks, limit = [(path, offset)], time.monotonic() + seconds
        while True:
            try:
                self._sanlock.acquire(self._space, name.encode(), disks, slkfd=self._connection)
                break
            except self._sanlock.SanlockException as fault:
                if fault.errno not in _HELD:
                    raise
                if time.monotonic() > limit:
                    raise self._busy(name, fault.errno) from None
                time.sleep(0.1)
        try:
            yield
        finally:
            self._sanlock.release(self._space, name.encode(), disks, slkfd=self._connection)

    def _busy(self, name: str, code: int) -> errors.Problem:
        if name == "SDM":
            return self._failed("another host writes to the domain and does not end (its SDM lease is held)")
        holder = "a process of this host" if code == errno.EEXIST else "another host"
        return errors.LeaseHeld(vm_id=self._vm, holder=holder)

    def _failed(self, reason: str) -> errors.LeaseFailed:
        return errors.LeaseFailed(vm_id=self._vm, domain_id=self._domain["id"], action="written", reason=reason)


def main() -> None:
    op, domain, vm = json.loads(sys.argv[1])
    try:
        writer = Writer(domain, vm)
        reply = {"ok": writer.create() if op == "create" else writer.drop()}
    except errors.Problem as problem:
        reply = {"error": problem.to_wire()}
    except (OSError, lease_index.Unreadable) as fault:
        reply = {
            "error": errors.LeaseFailed(vm_id=vm, domain_id=domain["id"], action="written", reason=str(fault)).to_wire()
        }
    except Exception as fault:  # SanlockException is no OSError; its class needs the binding
        reason = f"sanlock says: {fault.args[-1] if fault.args else fault}"
        if getattr(fault, "errno", 0) == errno.ENOSPC:  # its word for a lockspace that it has not joined
            reason = "this host's sanlock has not joined the domain's lockspace"
        reply = {
            "error": errors.LeaseFailed(vm_id=vm, domain_id=domain["id"], action="written", reason=reason).to_wire()
        }
    sys.stdout.write(json.dumps(reply))


if __name__ == "__main__":
    main()
