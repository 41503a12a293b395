"""What the inventory asks of others: the hosts' agents, and the snapshots service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from chassis import crash
from contracts import errors, hostagent, snapshots
from contracts.promise import Rpc

Facts = dict[str, Any]
JOIN_SECONDS = 5.0  # a host only begins to join; one that does not answer is asked again later


class Caller(Protocol):
    """`chassis.bus.Client`, as far as it is used here."""

    def call(
        self, promise: Rpc, request: dict[str, Any], *, at: str | None = None, deadline: float | None = None
    ) -> dict[str, Any]: ...


# After one of these nobody knows whether it was done. ServiceAway belongs here too: a request may be published a
# second time after a broken connection, and only the second one was found to be unroutable.
UNKNOWN = (
    errors.NoAnswer,
    errors.ServiceAway,
    errors.BusAway,
    errors.InternalError,
    errors.DatabaseAway,
    errors.StorageTimeout,
    errors.HypervisorAway,
)


@dataclass(frozen=True)
class Outcome:
    """How an ask ended: with facts, with a refusal (nothing was done), or unknown."""

    facts: Facts | None = None
    refused: errors.Problem | None = None
    unknown: errors.Problem | None = None

    @property
    def problem(self) -> errors.Problem | None:
        return self.refused or self.unknown

    def give(self) -> None:
        """Raise what the ask ended with, if it did not end well."""
        if self.problem is not None:
            raise self.problem


def attempt(name: str, ask: Callable[[], Facts], again: bool = False) -> Outcome:
    """Ask once; `name` names the crash points around it. `again`: how an earlier ask ended is not known, and one that
    comes too late to be carried out says nothing about it."""
    crash.point(f"inventory.{name}.before_ask")
    try:
        outcome = Outcome(facts=ask())
    except UNKNOWN as problem:
        outcome = Outcome(unknown=problem)
    except errors.Late as problem:
        outcome = Outcome(unknown=problem) if again else Outcome(refused=problem)
    except errors.Problem as problem:
        outcome = Outcome(refused=problem)
    crash.point(f"inventory.{name}.after_ask")
    return outcome


@dataclass(frozen=True)
class Peers:
    client: Caller

    def create_domain(self, host_id: str, domain: Facts, name: str, data_center_id: str, io_timeout: int) -> Facts:
        ask = {"domain": domain, "name": name, "data_center_id": data_center_id, "io_timeout": io_timeout}
        return self.client.call(hostagent.create_domain, ask, at=host_id)

    def look_domain(self, host_id: str, domain: Facts) -> Facts:
        return self.client.call(hostagent.look_domain, {"domain": domain}, at=host_id)

    def delete_domain(self, host_id: str, domain: Facts) -> Facts:
        return self.client.call(hostagent.delete_domain, {"domain": domain}, at=host_id)

    def join_domain(self, host_id: str, domain: Facts, number: int, io_timeout: int) -> Facts:
        ask = {"domain": domain, "sanlock_id": number, "io_timeout": io_timeout}
        return self.client.call(hostagent.join_domain, ask, at=host_id, deadline=JOIN_SECONDS)

    def leave_domain(self, host_id: str, domain: Facts) -> Facts:
        return self.client.call(hostagent.leave_domain, {"domain": domain}, at=host_id)

    def drop_lease(self, host_id: str, domain: Facts, vm_id: str) -> Facts:
        return self.client.call(hostagent.drop_lease, {"domain": domain, "vm_id": vm_id}, at=host_id)

    def create_volume(self, host_id: str, disk: Facts, volume_id: str, capacity: int, form: str) -> Facts:
        ask = {"disk": disk, "volume_id": volume_id, "capacity": capacity, "format": form}
        return self.client.call(hostagent.create_volume, ask, at=host_id)

    def create_thin_disk(self, host_id: str, disk: Facts, volume_id: str, template: str, template_volume: str) -> Facts:
        base = {"template_disk_id": template, "template_volume_id": template_volume}
        return self.client.call(hostagent.create_thin_disk, {"disk": disk, "volume_id": volume_id, **base}, at=host_id)

    def copy_disk(self, host_id: str, disk: Facts, volume_id: str, source: Facts, shared: bool) -> Facts:
        ask = {"disk": disk, "volume_id": volume_id, "source": source, "shared": shared}
        return self.client.call(hostagent.copy_disk, ask, at=host_id)

    def delete_disk(self, host_id: str, disk: Facts) -> Facts:
        return self.client.call(hostagent.delete_disk, {"disk": disk}, at=host_id)

    def start_vm(self, host_id: str, spec: Facts) -> Facts:
        return self.client.call(hostagent.start_vm, spec, at=host_id)

    def shut_down_vm(self, host_id: str, vm_id: str) -> Facts:
        return self.client.call(hostagent.shut_down_vm, {"vm_id": vm_id}, at=host_id)

    def power_off_vm(self, host_id: str, vm_id: str) -> Facts:
        return self.client.call(hostagent.power_off_vm, {"vm_id": vm_id}, at=host_id)

    def look_vm(self, host_id: str, vm_id: str) -> Facts:
        return self.client.call(hostagent.look_vm, {"vm_id": vm_id}, at=host_id)

    def check_idle(self, id_: str) -> None:
        """Raises StillInUse or DiskBusy while the snapshots service works on this disk or VM, or needs it."""
        self.client.call(snapshots.check_idle, {"id": id_})
