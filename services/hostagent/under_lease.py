"""An offline writer that holds the VM's lease: as long as it runs the VM starts nowhere, and it does not begin while
the VM runs anywhere.

    start(...) -> this module in a process of its own: register with sanlock, acquire, say so, exec the command

The process that holds the lease is the command itself (exec keeps pid and sanlock's connection), so that sanlock kills
the writer, and nobody else, when this host loses the storage; and the lease is free when the writer has ended.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from contracts import errors
from services.hostagent import layout

_CONNECTION = "DRYSTONE_LEASE_CONNECTION"
SECONDS = 20.0  # to register, and to take a lease that is free

Ref = dict[str, Any]


def start(
    domain: Ref, vm_id: str, offset: int, command: Sequence[str], *, seconds: float = SECONDS, **popen: Any
) -> subprocess.Popen[bytes]:
    """The command, running under the lease at this offset of the domain's xleases. `popen` goes to
    subprocess.Popen. Raises LeaseHeld, LeaseFailed, StorageTimeout; then nothing was begun."""
    ours, theirs = os.pipe()
    try:
        order = json.dumps({"domain": domain, "vm_id": vm_id, "offset": offset, "tell": theirs})
        words = [sys.executable, "-m", "services.hostagent.under_lease", order, *command]
        process = subprocess.Popen(words, pass_fds=(theirs,), start_new_session=True, **popen)
    finally:
        os.close(theirs)
    try:
        told = _hear(ours, seconds)
    finally:
        os.close(ours)
    if told == {"held": True}:
        return process
    process.kill()
    process.wait()
    if told is None:
        raise errors.StorageTimeout(path=domain["path"], seconds=seconds)
    raise errors.from_wire(told)


def connection() -> int | None:
    """For a command that runs under a lease: the descriptor that keeps it. Who starts a process that writes passes it
    on, so that the lease is free only when that process has ended too."""
    number = os.environ.get(_CONNECTION)
    return None if number is None else int(number)


def _hear(pipe: int, seconds: float) -> dict[str, Any] | None:
    """The first line, None when there was none in time."""
    if not select.select([pipe], [], [], seconds)[0]:
        return None
    line = os.read(pipe, 65536)
    return dict(json.loads(line)) if line else None


def main() -> None:
    order, command = json.loads(sys.argv[1]), sys.argv[2:]
    held, problem = _take(order)
    if problem is not None:
        os.write(order["tell"], json.dumps(problem.to_wire()).encode())
        sys.exit(1)
    os.set_inheritable(held, True)
    os.environ[_CONNECTION] = str(held)
    os.set_inheritable(order["tell"], False)  # closed by the exec
    os.write(order["tell"], json.dumps({"held": True}).encode())
    os.execvp(command[0], command)  # noqa: S606  no shell is what we want


def _take(order: dict[str, Any]) -> tuple[int, errors.Problem | None]:
    """sanlock's connection, and why the lease was not taken."""
    import sanlock

    domain, vm_id = order["domain"], order["vm_id"]
    path = layout.Place(domain["path"], domain["id"]).dom_md + "/xleases"
    connection = -1
    try:
        connection = sanlock.register()
        disks = [(path, order["offset"])]
        sanlock.acquire(domain["id"].encode(), vm_id.encode(), disks, slkfd=connection)
        return connection, None
    except sanlock.SanlockException as fault:
        with contextlib.suppress(OSError):
            os.close(connection)
        # EBUSY: its owner is dead, and not for long enough yet (seen after the power cut of a host)
        if fault.errno in (errno.EEXIST, errno.EAGAIN, errno.EBUSY, -243):
            holder = "a process of this host" if fault.errno == errno.EEXIST else "another host"
            return -1, errors.LeaseHeld(vm_id=vm_id, holder=holder)
        reason = f"sanlock says: {fault.args[-1]} ({fault.errno})"
        return -1, errors.LeaseFailed(vm_id=vm_id, domain_id=domain["id"], action="taken", reason=reason)


if __name__ == "__main__":
    main()
