"""Looking at all that a removal touches, before it begins: VMs, hosts and domains at inventory, disks at the agents.

What cannot be seen refuses its own disks and nothing else. VMs, hosts, domains and disks are asked for once each,
several at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from chassis import logs
from contracts import errors
from services.snapshots import peers, store, store_jobs
from services.snapshots.desk import Desk
from services.snapshots.facts import DiskFacts
from services.snapshots.planning import Seen, Wanted

ACTION = "removing a snapshot"
Found = dict[str, Any]  # by id: what was told, or the Problem
_log = logs.get("snapshots")


def look(desk: Desk, wanted: Sequence[Wanted]) -> dict[str, Seen | errors.Problem]:
    """By disk id: the disk as it was found, or why nothing may be done with it."""
    vms = _each(desk, desk.peers.vm, (one.vm_id for one in wanted))
    sound_vms = [vm_id for vm_id, vm in vms.items() if not isinstance(vm, errors.Problem)]
    hosts = _each(desk, lambda vm_id: host_of(desk, vms[vm_id]), sound_vms)
    up = _each(desk, desk.peers.host_up, (host for host in hosts.values() if isinstance(host, str)))
    disks: Found = {one.disk_id: _plugged(one, vms, hosts, up) for one in wanted}
    sound = [disk for disk in disks.values() if not isinstance(disk, errors.Problem)]
    domains = _each(desk, desk.peers.active_domain, (disk["domain_id"] for disk in sound))
    for disk in sound:
        if isinstance(domains[disk["domain_id"]], errors.Problem):
            disks[disk["id"]] = domains[disk["domain_id"]]

    def ask(disk_id: str) -> DiskFacts:
        disk, vm_id = disks[disk_id], disks[disk_id]["vm_id"]
        domain = domains[disk["domain_id"]]
        return desk.peers.look(hosts[vm_id], vm_id, peers.disk_ref(disk_id, domain["id"], domain["path"]))

    facts = _each(desk, ask, (id_ for id_, disk in disks.items() if not isinstance(disk, errors.Problem)))
    return {id_: _seen(desk, disk, facts.get(id_), hosts, domains) for id_, disk in disks.items()}


def _each(desk: Desk, ask: Callable[[str], Any], ids: Iterable[str]) -> Found:
    once = list(dict.fromkeys(ids))
    return dict(zip(once, desk.gather(lambda id_: _try(ask, id_), once), strict=True))


def _try(ask: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return ask(*arguments)
    except errors.Problem as problem:
        return problem


def _plugged(one: Wanted, vms: Found, hosts: Found, up: Found) -> dict[str, Any] | errors.Problem:
    """Inventory's disk of a VM with a host that is up: where it runs, or where it is worked on while it is down."""
    vm = vms[one.vm_id]
    host = hosts.get(one.vm_id)
    for found in (vm, host, up.get(host) if isinstance(host, str) else None):
        if isinstance(found, errors.Problem):
            return found
    disk = next((disk for disk in vm["disks"] if disk["id"] == one.disk_id), None)
    if disk is None:
        return errors.ChainDiffers(disk_id=one.disk_id, reason=f"the disk is not plugged in VM {one.vm_id}")
    return {**disk, "vm_id": one.vm_id}


def _seen(
    desk: Desk, disk: dict[str, Any] | errors.Problem, facts: Any, hosts: Found, domains: Found
) -> Seen | errors.Problem:
    if isinstance(disk, errors.Problem):
        return disk
    if isinstance(facts, errors.Problem):
        return facts
    domain = domains[disk["domain_id"]]
    with desk.db.read() as session:
        known = store.chain_of(session, disk["id"])
        promised = store_jobs.promised(session, domain["id"], "")
    reserve = desk.settings.reserve(domain["total"])
    where = (disk["vm_id"], hosts[disk["vm_id"]], domain["id"], domain["path"])
    return Seen(*where, known, facts, promised, reserve, desk.settings.policy())


# -- where a VM runs --------------------------------------------------------------------------------------


def host_of(desk: Desk, vm: Mapping[str, Any]) -> str:
    """The host on which the VM's QEMU lives; of a VM that is down one that can take its lease. Raises VmWrongState,
    VmUnsure, HostNotUp, NoHost, NoLease."""
    if vm["state"] in ("running", "paused") and vm["host_id"]:
        return str(vm["host_id"])
    refuse_between(vm, ACTION, "running or down")
    if vm["state"] != "down":
        raise errors.VmWrongState(vm_id=vm["id"], state=vm["state"], action=ACTION, needs="on a host")
    host_id = next(iter(desk.peers.hosts_up(vm)), None)
    if host_id is None:
        raise errors.NoHost(kind="data center", id=vm["data_center_id"], reason="none is up")
    try:
        desk.peers.vm_lease(vm["id"], host_id, "its snapshots are merged")
    except errors.NoLease:
        raise
    except errors.Problem as problem:  # the merge waits for what passes
        _log.info(f"the lease of a VM that is down is not to be had now: {problem}", vm_id=vm["id"])
    return host_id


def refuse_between(vm: Mapping[str, Any], action: str, needs: str) -> None:
    """Refuse a VM of which nobody can say where and whether it runs. Raises VmUnsure, HostNotUp, VmWrongState."""
    if vm["state"] == "unsure":
        raise errors.VmUnsure(vm_id=vm["id"], reason=vm["reason"] or "they disagree")
    if vm["state"] == "unknown":
        raise errors.HostNotUp(host_id=vm["host_id"], state="silent")
    if vm["state"] not in ("running", "paused", "down"):
        raise errors.VmWrongState(vm_id=vm["id"], state=vm["state"], action=action, needs=needs)
