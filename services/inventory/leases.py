"""Lockspaces and leases, as far as the inventory decides them: the hosts' numbers, which host joins which lockspace,
which domain holds a VM's lease.

A VM's lease is on a domain on which it has a disk: once chosen it stays there as long as such a disk is plugged, so
that a start and an offline writer take the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from contracts import errors
from services.inventory import hosts, peers, store, tables, views
from services.inventory.scene import Scene

Ask = dict[str, Any]
Plugged = list[tuple[tables.Disk, tables.StorageDomain]]
START_FIRST = 20.0  # seconds after a refused start in which no merge begins; one that runs goes on
NOWHERE = "/"  # the path of a domain that is gone: the agent knows where it was


@dataclass(frozen=True)
class Errand:
    """A host joins a lockspace, or leaves it (`number` null)."""

    host_id: str
    domain: Ask
    number: int | None
    io_timeout: int


# -- a VM's lease -----------------------------------------------------------------------------------------


def wanted(session: Session, vm: tables.Vm, plugged: Plugged) -> bool:
    """Whether this VM takes a lease when it starts."""
    return bool(plugged) and store.get(session, tables.DataCenter, vm.data_center_id).leases


def of_writer(scene: Scene, ask: Ask) -> Ask:
    """contracts.inventory.VmLease. Chosen and kept as by a start, so that both take the same one. Raises VmWrongState
    unless the VM is down: one that is paused holds no lease, so that a free one proves nothing."""
    move(scene, ask["id"])

    def choose(session: Session) -> Ask:
        vm = store.hold(session, tables.Vm, ask["id"])
        if vm.state != "down":
            raise errors.VmWrongState(vm_id=vm.id, state=vm.state, action="writing its disks", needs="down")
        plugged = store.with_domains(session, store.hold_disks(session, vm.id))
        return {"lease": for_start(session, vm, ask["host_id"], plugged), "wait": _start_first(scene, vm)}

    return scene.write(choose)


def _start_first(scene: Scene, vm: tables.Vm) -> float:
    """Seconds: one merge follows the other, and a start would find no moment between them."""
    if not vm.reason or vm.asked_until is None:  # it is down because somebody wanted it, or was never started
        return 0.0
    since = (scene.now() - vm.asked_until).total_seconds()
    return max(0.0, START_FIRST - since) if since >= 0 else START_FIRST


def for_start(session: Session, vm: tables.Vm, host_id: str, plugged: Plugged) -> Ask | None:
    """contracts.hostagent.Lockspace of the lease that this start takes, None for a VM without one."""
    center = store.get(session, tables.DataCenter, vm.data_center_id)
    number = store.get(session, tables.Host, host_id).sanlock_id
    if not wanted(session, vm, plugged):
        return None
    if number is None:
        advice = "Delete the host and add it again."
        raise errors.LeasesUnfit(host_id=host_id, reason="it has no number in lockspaces", advice=advice)
    domains = {domain.id: domain for _, domain in plugged}
    if vm.lease_domain_id not in domains:
        vm.lease_domain_id = plugged[0][1].id
    domain = domains[vm.lease_domain_id]
    return {"domain": views.domain_ref(domain), "sanlock_id": number, "io_timeout": center.io_timeout}


def named(scene: Scene, vm_id: str, outcome: peers.Outcome) -> peers.Outcome:
    """The same, where a lease's holder is one of our hosts with its name: the agent knows numbers only."""
    held = outcome.refused
    return replace(outcome, refused=_named(scene, vm_id, held)) if isinstance(held, errors.LeaseHeld) else outcome


def _named(scene: Scene, vm_id: str, held: errors.LeaseHeld) -> errors.LeaseHeld:
    if "sanlock_id" not in held.fields:
        return held
    with scene.database.read() as session:
        center = store.get(session, tables.Vm, vm_id).data_center_id
        query = hosts.of_center(center, tables.Host.name)
        name = session.execute(query.where(tables.Host.sanlock_id == held.fields["sanlock_id"])).scalar_one_or_none()
    holder = held.fields["holder"] if name is None else f'host "{name}"'
    return errors.LeaseHeld(**{**held.fields, "holder": holder})


def drop(scene: Scene, vm_id: str) -> errors.LeaseHeld | None:
    """Before a VM is deleted: its lease goes. Only one that somebody holds is a reason not to delete the VM; a lease
    that cannot be reached stays behind, one of 3960."""
    try:
        _drop(scene, vm_id, lambda _session, _vm: True)
    except errors.LeaseHeld as held:
        return _named(scene, vm_id, held)
    except errors.Problem as problem:
        scene.log.warning(f"a lease that a VM needs no more stays behind: {problem}", vm_id=vm_id)
    return None


def move(scene: Scene, vm_id: str) -> None:
    """Before a start of a VM that has no disk on its lease's domain any more: that lease goes, and the next one is
    made where its disks are. Raises LeaseHeld (somebody still writes its disks under the old one), and whatever keeps
    us from knowing that nobody does."""

    def is_left(session: Session, vm: tables.Vm) -> bool:
        plugged = store.disks_of(session, vm.id).get(vm.id, [])
        leases = store.get(session, tables.DataCenter, vm.data_center_id).leases
        return leases and vm.state == "down" and vm.lease_domain_id not in {disk.domain_id for disk in plugged}

    try:
        _drop(scene, vm_id, is_left)
    except errors.LeaseHeld as held:
        raise _named(scene, vm_id, held) from None


def _drop(scene: Scene, vm_id: str, goes: Callable[[Session, tables.Vm], bool]) -> None:
    def find(session: Session) -> tuple[str, Ask] | None:
        vm = store.find(session, tables.Vm, vm_id)
        domain = session.get(tables.StorageDomain, vm.lease_domain_id) if vm and vm.lease_domain_id else None
        if vm is None or domain is None or not goes(session, vm):
            return None
        return hosts.pick(scene, session, domain.data_center_id, domain.host_id), views.domain_ref(domain)

    def forget(session: Session) -> None:
        vm = store.find(session, tables.Vm, vm_id)
        if vm is not None and found is not None and vm.lease_domain_id == found[1]["id"]:
            vm.lease_domain_id = None

    found = scene.write(find)
    if found is not None:
        scene.peers.drop_lease(found[0], found[1], vm_id)
        scene.write(forget)


# -- who joins what ---------------------------------------------------------------------------------------


def watch(scene: Scene, host_id: str | None = None) -> None:
    """Every host, or this one, joins the lockspaces of its data center's domains, and leaves those of domains that are
    gone."""
    with scene.database.read() as session:
        errands = _due(session)
    for errand in errands:
        if host_id in (None, errand.host_id):
            _run(scene, errand)


def _due(session: Session) -> list[Errand]:
    query = (
        sa.select(tables.Host, tables.DataCenter)
        .join(tables.Cluster, tables.Cluster.id == tables.Host.cluster_id)
        .join(tables.DataCenter, tables.DataCenter.id == tables.Cluster.data_center_id)
        .where(tables.Host.state == "up")
    )
    domains = list(session.execute(sa.select(tables.StorageDomain).order_by(tables.StorageDomain.id)).scalars())
    return [errand for host, center in session.execute(query) for errand in _of_host(host, center, domains)]


def _of_host(host: tables.Host, center: tables.DataCenter, domains: list[tables.StorageDomain]) -> list[Errand]:
    has = {facts["domain_id"] for facts in host.lockspaces}
    known = {domain.id for domain in domains}
    wanted = [one for one in domains if one.data_center_id == center.id and one.state == "active"]
    due = [Errand(host.id, {"id": id_, "path": NOWHERE}, None, 0) for id_ in sorted(has - known)]
    if center.leases and host.sanlock_id is not None:
        missing = [one for one in wanted if one.id not in has]
        due += [Errand(host.id, views.domain_ref(one), host.sanlock_id, center.io_timeout) for one in missing]
    return due


def _run(scene: Scene, errand: Errand) -> None:
    try:
        if errand.number is None:
            scene.peers.leave_domain(errand.host_id, errand.domain)
        else:
            scene.peers.join_domain(errand.host_id, errand.domain, errand.number, errand.io_timeout)
    except errors.Problem as problem:
        what = "leave" if errand.number is None else "join"
        about = {"host_id": errand.host_id, "domain_id": errand.domain["id"]}
        scene.log.info(f"a host could not be asked to {what} a lockspace: {problem}", **about)
