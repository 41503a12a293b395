"""Calls to others: what inventory knows, and what the agent of a host sees and does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from chassis.steps import Flow, Unknown
from contracts import errors, hostagent, inventory
from contracts.promise import Rpc
from services.snapshots import facts

CLOCK_LIMIT = 2.0  # seconds; a host that is more off takes no dangerous ask (deadlines are wall-clock)
# In a flow these mean: look again later. What they name mends itself, or a person mends it while the flow waits.
PASSING = (
    errors.HypervisorAway,
    errors.StorageTimeout,
    errors.VmUnsure,
    errors.DiskBusy,
    errors.HostNotUp,
    errors.NoHost,
    errors.ClockOff,
)
# The same for an ask that found the VM up or down, other than the look before it, or its lease not free yet.
TURNED = (*PASSING, errors.VmStopped, errors.VmWrongState, errors.LeaseHeld, errors.LockspaceNotJoined)


class Caller(Protocol):
    """`chassis.bus.Client`, or what a test puts in its place."""

    def call(
        self, promise: Rpc, request: dict[str, Any], *, at: str | None = None, deadline: float | None = None
    ) -> dict[str, Any]: ...


# A look that failed has learnt nothing, whatever the reason.
BLIND = (*PASSING, errors.StorageFailed, errors.DomainUnusable, errors.HypervisorRefused)


@contextlib.contextmanager
def patient(passing: tuple[type[errors.Problem], ...] = PASSING) -> Iterator[None]:
    """Inside a step: what passes by itself is unknown, not failed."""
    try:
        yield
    except passing as problem:
        raise Unknown(problem) from problem


def disk_ref(disk_id: str, domain_id: str, path: str) -> dict[str, Any]:
    """contracts.hostagent.DiskRef."""
    return {"disk_id": disk_id, "domain": {"id": domain_id, "path": path}}


def claim_of(flow: Flow) -> dict[str, Any]:
    """contracts.hostagent.Claim: every look and ask of a flow carries it."""
    return {"flow_id": flow.id, "number": flow.claim}


class Peers:
    """Every method raises the declared errors of the promise that it calls."""

    def __init__(self, client: Caller) -> None:
        self._client = client

    # -- inventory ----------------------------------------------------------------------------------------

    def vm(self, vm_id: str) -> dict[str, Any]:
        return self._client.call(inventory.get_vm, {"id": vm_id})

    def vm_lease(self, vm_id: str, host_id: str, action: str) -> tuple[dict[str, Any], float]:
        """contracts.hostagent.Lockspace of the lease under which this host may write the disks of a VM that is down,
        and for how many seconds a start goes first. Raises NoLease, LeaseHeld, VmWrongState."""
        told = self._client.call(inventory.vm_lease, {"id": vm_id, "host_id": host_id})
        if told["lease"] is None:
            raise errors.NoLease(vm_id=vm_id, action=action)
        return dict(told["lease"]), float(told["wait"])

    def disk(self, disk_id: str) -> dict[str, Any]:
        return self._client.call(inventory.get_disk, {"id": disk_id})

    def vm_names(self, after: str | None) -> tuple[dict[str, str], str | None]:
        """One page of the names of all VMs, by id, and the cursor of the next one."""
        page = self._client.call(inventory.list_vms, {"after": after, "limit": 1000})
        return {vm["id"]: vm["name"] for vm in page["items"]}, page["next"]

    def domain(self, domain_id: str) -> dict[str, Any]:
        return self._client.call(inventory.get_storage_domain, {"id": domain_id})

    def active_domains(self) -> Iterator[dict[str, Any]]:
        after: str | None = None
        while True:
            page = self._client.call(inventory.list_storage_domains, {"after": after, "limit": 1000})
            yield from (domain for domain in page["items"] if domain["state"] == "active")
            after = page["next"]
            if after is None:
                return

    def disks(self, domain_id: str, after: str | None, limit: int) -> dict[str, Any]:
        """One page of the disks on a domain."""
        return self._client.call(inventory.list_disks, {"domain_id": domain_id, "after": after, "limit": limit})

    def active_domain(self, domain_id: str) -> dict[str, Any]:
        """Raises NotFound, DomainNotActive."""
        domain = self._client.call(inventory.get_storage_domain, {"id": domain_id})
        if domain["state"] != "active":
            raise errors.DomainNotActive(domain_id=domain_id, state=domain["state"])
        return domain

    def host_up(self, host_id: str) -> dict[str, Any]:
        """Raises NotFound, HostNotUp, ClockOff."""
        host = self._client.call(inventory.get_host, {"id": host_id})
        if host["state"] != "up":
            why = f" ({host['problem']})" if host["state"] == "problem" and host["problem"] else ""
            raise errors.HostNotUp(host_id=host_id, state=host["state"] + why)
        if abs(host["clock_offset"] or 0.0) > CLOCK_LIMIT:
            raise errors.ClockOff(host_id=host_id, seconds=host["clock_offset"])
        return host

    def hosts_up(self, vm: Mapping[str, Any]) -> list[str]:
        """Ids of the hosts of the VM's data center that are up, those of its own cluster first."""
        request = {"data_center_id": vm["data_center_id"], "limit": 1000}
        clusters = self._client.call(inventory.list_clusters, request)["items"]
        ids = sorted((cluster["id"] for cluster in clusters), key=lambda cluster_id: cluster_id != vm["cluster_id"])
        found: list[dict[str, Any]] = []
        for cluster_id in ids:
            hosts = self._client.call(inventory.list_hosts, {"cluster_id": cluster_id, "limit": 1000})["items"]
            found += [host for host in hosts if host["state"] == "up"]
        # those that can take leases first: offline merges need one
        return [host["id"] for host in sorted(found, key=lambda host: bool((host["facts"] or {}).get("leases_fault")))]

    # -- agents -------------------------------------------------------------------------------------------

    def look(
        self, host_id: str, vm_id: str | None, disk: Mapping[str, Any], claim: Mapping[str, Any] | None = None
    ) -> facts.DiskFacts:
        return facts.read(self.look_told(host_id, vm_id, disk, claim))

    def look_told(
        self, host_id: str, vm_id: str | None, disk: Mapping[str, Any], claim: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The same as it was told, for those who pass it on."""
        request = {"vm_id": vm_id, "disk": dict(disk), "claim": dict(claim) if claim else None}
        return self._client.call(hostagent.look_disk, request, at=host_id)

    def ask(self, host_id: str, promise: Rpc, request: dict[str, Any], deadline: float | None = None) -> dict[str, Any]:
        """One ask to the agent of a host; `deadline` in seconds where the promise's own is too long."""
        return self._client.call(promise, request, at=host_id, deadline=deadline)
