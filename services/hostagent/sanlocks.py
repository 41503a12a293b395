"""What is asked of this host's sanlock about one domain. Runs in the storage child: a daemon that hangs on a dead
storage costs its caller the deadline and nobody else anything.

sanlock takes names as bytes. Its errors are errno values, or its own below -200.
"""

from __future__ import annotations

import errno
import struct
import subprocess
from typing import Any

import sanlock

from contracts import errors
from services.hostagent import layout, lease_index, lease_writer

Ref = dict[str, Any]
HELD_HERE = errno.EEXIST
HELD_ELSEWHERE = -243
_NOT_RUNNING = (errno.ECONNREFUSED, errno.ENOENT, errno.EPIPE, errno.ECONNRESET)
STATUS_SECONDS = 3.0
_SECTOR = 512
_DELTA_MAGIC = 0x12212010
# of a host's record in `ids`: magic, 44 bytes, generation, lver, lockspace, holder's name, timestamp (0: free)
_RECORD = struct.Struct("<I36xQQ48s48sQ")


def unfit(fault: OSError | Exception) -> errors.LeasesUnfit:
    """The host id is the caller's to fill in."""
    return errors.LeasesUnfit(host_id="?", reason=f"sanlock does not answer ({fault})", advice="Start sanlock there.")


def guarded(fault: Exception, domain: Ref, vm: str, action: str) -> errors.Problem:
    """The Problem that an exception of sanlock is."""
    code, words = getattr(fault, "errno", 0), str(fault.args[-1] if fault.args else fault)
    if code in _NOT_RUNNING:
        return unfit(fault)
    reason = f"sanlock says: {words} ({code})"
    if not vm:
        return errors.StorageFailed(action=action, path=_dom_md(domain), reason=reason)
    return errors.LeaseFailed(vm_id=vm, domain_id=domain["id"], action=action, reason=reason)


# -- the lockspace ----------------------------------------------------------------------------------------


def look(domain: Ref) -> dict[str, Any]:
    """{"state": joined, joining, leaving or absent; "sanlock_id"; "path"}."""
    try:
        known = {one["lockspace"]: one for one in sanlock.get_lockspaces()}
    except sanlock.SanlockException as fault:
        raise unfit(fault) from None
    found = known.get(domain["id"].encode())
    if found is None:
        return {"state": "absent", "sanlock_id": None, "path": None}
    state = {0: "joined", sanlock.LSFLAG_ADD: "joining"}.get(found["flags"], "leaving")
    return {"state": state, "sanlock_id": found["host_id"], "path": found["path"]}


def join(domain: Ref, sanlock_id: int, io_timeout: int) -> dict[str, Any]:
    """Begin to join; what comes of it shows in `look`. Asking again is fine."""
    path = _dom_md(domain) + "/ids"
    try:
        sanlock.add_lockspace(domain["id"].encode(), sanlock_id, path, iotimeout=io_timeout, wait=False)
    except sanlock.SanlockException as fault:
        if fault.errno not in (errno.EEXIST, errno.EINPROGRESS, errno.EAGAIN):
            raise guarded(fault, domain, "", "joining its lockspace") from None
    return look(domain)


def leave(domain: Ref) -> dict[str, Any]:
    """Begin to leave; StillInUse while a VM of this host holds a lease there."""
    here = look(domain)
    if here["state"] == "absent":
        return here
    try:
        sanlock.rem_lockspace(domain["id"].encode(), here["sanlock_id"], here["path"], wait=False, unused=True)
    except sanlock.SanlockException as fault:
        if fault.errno == errno.EBUSY:
            by = "VMs of this host that hold their leases there"
            raise errors.StillInUse(kind="storage domain", id=domain["id"], by=by) from None
        if fault.errno not in (errno.EINPROGRESS, errno.ENOENT):
            raise guarded(fault, domain, "", "leaving its lockspace") from None
    return look(domain)


def record(domain: Ref, sanlock_id: int) -> dict[str, Any]:
    """A host's record in `ids`, read from the storage: {"formatted", "holder" (name, empty: nobody), "generation",
    "timestamp"}."""
    at = (sanlock_id - 1) * _SECTOR
    start = at - at % lease_index.BLOCK
    try:
        block = lease_index.read_direct(_dom_md(domain) + "/ids", start, lease_index.BLOCK)
    except OSError as fault:
        raise errors.StorageFailed(action="join_domain", path=_dom_md(domain), reason=str(fault)) from None
    sector = block[at - start : at - start + _SECTOR]
    if len(sector) < _SECTOR:
        return {"formatted": False, "holder": "", "generation": 0, "timestamp": 0}
    magic, generation, _, _, name, stamp = _RECORD.unpack_from(sector)
    holder = name.rstrip(b"\0").decode("ascii", "replace") if stamp else ""
    return {"formatted": magic == _DELTA_MAGIC, "holder": holder, "generation": generation, "timestamp": stamp}


# -- leases -----------------------------------------------------------------------------------------------


def ensure(domain: Ref, vm: str) -> dict[str, Any]:
    """{"offset"} of the VM's lease, which is made where there is none."""
    offset = _find(domain, vm)
    if offset is None:
        return lease_writer.run("create", domain, vm)
    return {"offset": offset}


def drop(domain: Ref, vm: str) -> None:
    """Forget the VM's lease, if nobody holds it; none there is fine."""
    if _find(domain, vm) is not None:
        lease_writer.run("drop", domain, vm)


def owner(domain: Ref, vm: str) -> dict[str, Any]:
    """Who stands in the way of taking the VM's lease: {"sanlock_id", "here", "known"}; null, false, true where nobody
    does.

    A host that is free or dead, or that came back under a newer generation, stands in nobody's way. One of which too
    little is known yet does, and is not `known`: a host that has just joined learns of the others at its first renewal,
    2 x io_timeout later."""
    nobody = {"sanlock_id": None, "here": False, "known": True}
    offset, space = _find(domain, vm), domain["id"].encode()
    if offset is None:
        return nobody
    try:
        owners = sanlock.read_resource_owners(space, vm.encode(), [(_xleases(domain), offset)])
        own = look(domain)["sanlock_id"]
        for one in owners:
            here = one["host_id"] == own
            if here and record(domain, own)["generation"] > one["generation"]:
                continue  # from before this host's restart; our own generation is read where it was written
            if here and not _held_here(domain, vm):
                continue  # its holder ended while the storage failed, and the release could not be written
            host = _host(space, one["host_id"])
            if _holds(one, host):
                return {"sanlock_id": one["host_id"], "here": here, "known": here or host is not None}
    except sanlock.SanlockException as fault:
        raise guarded(fault, domain, vm, "read") from None
    return nobody


def _held_here(domain: Ref, vm: str) -> bool:
    """Whether a process of this host holds the VM's lease: sanlock's own list, which the binding does not offer. True
    where it cannot be had."""
    command = ["sanlock", "client", "status"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=STATUS_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return True
    return any(line.startswith(f"r {domain['id']}:{vm}:") for line in told.splitlines())


def _host(space: bytes, sanlock_id: int) -> dict[str, Any] | None:
    """What this host's sanlock knows of another one; None while it knows nothing yet."""
    try:
        found = next(iter(sanlock.get_hosts(space, sanlock_id)), None)
    except sanlock.SanlockException as fault:
        if fault.errno == errno.EAGAIN:
            return None
        raise
    return None if found is None or found["flags"] == sanlock.HOST_UNKNOWN else found


def _holds(one: dict[str, Any], host: dict[str, Any] | None) -> bool:
    if host is None:
        return True
    gone = host["flags"] in (sanlock.HOST_FREE, sanlock.HOST_DEAD)
    return not gone and host["generation"] <= one["generation"]


def version(domain: Ref, vm: str) -> dict[str, Any]:
    """{"version"} of the VM's lease on the storage: each taking of it counts up by one, whoever takes it."""
    offset = _find(domain, vm)
    if offset is None:
        raise errors.LeaseFailed(vm_id=vm, domain_id=domain["id"], action="looked up", reason="there is none")
    try:
        return {"version": sanlock.read_resource(_xleases(domain), offset)["version"]}
    except sanlock.SanlockException as fault:
        raise guarded(fault, domain, vm, "read") from None


def held(domain: Ref, vm: str, pid: int) -> dict[str, Any]:
    """{"held", "version"}: whether the process with this pid holds the VM's lease, by this host's sanlock, and with
    which version it took it (null: it does not)."""
    try:
        resources = sanlock.inquire(pid=pid)
    except sanlock.SanlockException as fault:
        if fault.errno == errno.ESRCH:  # sanlock knows no such process
            return {"held": False, "version": None}
        raise guarded(fault, domain, vm, "looked up") from None
    wanted = (domain["id"].encode(), vm.encode())
    versions = [one["version"] for one in resources if (one["lockspace"], one["resource"]) == wanted]
    return {"held": bool(versions), "version": versions[0] if versions else None}


def ready(domain: Ref, vm: str, pid: int) -> dict[str, Any]:
    """{"why"}: why this process could not give the VM's lease up and take it again; null when it could."""
    if look(domain)["state"] != "joined":
        return {"why": "this host's sanlock has not joined the domain's lockspace"}
    return {"why": None if held(domain, vm, pid)["held"] else "QEMU does not hold it now"}


def find(domain: Ref, vm: str) -> dict[str, Any]:
    """{"offset"}: where the index says that the VM's lease is, null where it names none."""
    return {"offset": _find(domain, vm)}


def _find(domain: Ref, vm: str) -> int | None:
    try:
        return lease_index.read(_xleases(domain), domain["id"]).find(vm)
    except lease_index.Unreadable as fault:
        reason = f"the index in {_xleases(domain)} cannot be used: {fault}"
    except FileNotFoundError:
        reason = f"{_xleases(domain)} is missing; domains have it from version 4 on"
    except OSError as fault:
        reason = f"{_xleases(domain)}: {fault.strerror or fault}"
    raise errors.LeaseFailed(vm_id=vm, domain_id=domain["id"], action="looked up", reason=reason)


def _dom_md(domain: Ref) -> str:
    return layout.Place(domain["path"], domain["id"]).dom_md


def _xleases(domain: Ref) -> str:
    return _dom_md(domain) + "/xleases"
