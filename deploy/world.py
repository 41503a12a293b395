"""Furnishes a fresh stack through its HTTP API: data center, cluster, hosts, storage domain, VMs of the writing guest.

The demo, the tests on real machines and the benchmarks start from here; all of it is what a user would do.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.api import Client
from deploy.guest import image, model
from deploy.stack import wait
from deploy.stack.stack import Stack

MIB = 2**20
IO_TIMEOUT = 1  # seconds: a lockspace is joined in 3 of them


@dataclass
class Machine:
    """A VM of the writing guest. `log` is its console: what it acknowledged."""

    api: Client
    id: str
    disks: list[str]
    log: Path
    domain: Path
    boot: dict[str, str]
    options: dict[str, Any]

    def start(self, host_id: str | None = None, *, check: bool = False) -> None:
        """Start it and wait until its guest has acknowledged something new on every disk.

        With `check` the guest first reads back all that it ever wrote.
        """
        if check != self.options.get("check", False):
            self.options["check"] = check
            boot = {**self.boot, "cmdline": image.cmdline(**self.options)}
            self.api.vms.change(self.id, self.api.vms.get(self.id)["version"], {"boot": boot})
        before = [self.acks().safe(number) for number in range(len(self.disks))]
        self.api.start_vm(self.id, host_id)
        for number, safe in enumerate(before):
            self.wait_for_writes(1, number, since=safe)

    def acks(self) -> model.Acks:
        return model.read_log(self.log) if self.log.exists() else model.Acks()

    def wait_for_writes(self, count: int, disk: int = 0, *, since: int | None = None, seconds: float = 90) -> None:
        """Until the guest has acknowledged so many writes more (4 KiB each)."""
        wanted = (self.acks().safe(disk) if since is None else since) + count
        wait.until(f"{count} acknowledged writes on disk {disk}", lambda: self.acks().safe(disk) >= wanted, seconds)

    def state(self) -> str:
        return self.api.vms.get(self.id)["state"]

    def wait_for_state(self, *states: str, seconds: float = 60) -> None:
        wait.until(f"VM state {' or '.join(states)}", lambda: self.state() in states, seconds)

    def power_off(self) -> None:
        self.api.power_off_vm(self.id)
        self.wait_for_state("down")

    def snapshot(self, description: str, seconds: float = 60) -> str:
        """Take a snapshot of all disks; answers its id."""
        job = self.finish(self.api.create_snapshot(self.id, {"description": description})["id"], seconds)
        return str(job["snapshot_id"])

    def remove(self, snapshot_id: str, seconds: float = 300) -> dict[str, Any]:
        """Remove a snapshot and wait; answers the removal's job as it ended."""
        return self.finish(self.api.remove_snapshot(snapshot_id)["id"], seconds)

    def finish(self, job_id: str, seconds: float = 300) -> dict[str, Any]:
        """The job as it ended; AssertionError says why it did not end well."""
        job: dict[str, Any] = {}
        for seen in self.api.watch(job_id, timeout=seconds):
            job = dict(seen)
        if job.get("state") != "done":
            raise AssertionError(
                f"{job.get('description')}: {job.get('state')}, {job.get('reason')} {job.get('action')}"
            )
        return job

    def chain(self, disk: int = 0) -> list[dict[str, Any]]:
        """The chain as the API tells it, first volume first."""
        return [dict(volume) for volume in self.api.chain(self.disks[disk])["volumes"]]

    def folder(self, disk: int = 0) -> Path:
        return self.domain / "images" / self.disks[disk]

    def files(self, disk: int = 0) -> set[str]:
        """Names of the volumes that lie in the image's folder, and of everything else that is no volume's own file."""
        found = {path.name for path in self.folder(disk).iterdir()}
        return {name for name in found if Path(name).suffix not in (".meta", ".lease")}

    def check(self, disk: int = 0) -> model.Result:
        """Read the disk back (the VM is down) and hold it against every write that the guest acknowledged."""
        leaf = self.chain(disk)[-1]["volume_id"]
        return model.check_image(self.acks(), disk, self.folder(disk) / leaf)


@dataclass
class World:
    """One data center with one cluster, all hosts of the stack, and one storage domain that they share."""

    stack: Stack
    api: Client
    guest: image.Image
    cluster_id: str = ""
    domain_id: str = ""
    machines: list[Machine] = field(default_factory=list)

    def close(self) -> None:
        """Close the connections to the API; everything stays as it is."""
        self.api.close()

    @classmethod
    def of(cls, stack: Stack) -> World:
        """Furnish it and wait until every host is up."""
        world = cls(stack, Client(stack.url, stack.token), image.build())
        api = world.api
        center = api.data_centers.create({"name": "dc1", "io_timeout": IO_TIMEOUT})
        world.cluster_id = api.clusters.create({"name": "cluster1", "data_center_id": center["id"]})["id"]
        for host in stack.hosts.values():
            api.hosts.create({"id": host.id, "name": host.name, "cluster_id": world.cluster_id}, key=host.id)
        for host in stack.hosts.values():
            world.wait_for_host(host.id)
        first = next(iter(stack.hosts.values()))  # who makes a domain is asked first for its disks, too
        domain = {"name": "data1", "data_center_id": center["id"], "path": str(stack.domain), "host_id": first.id}
        made = api.storage_domains.create(domain)
        world.domain_id = made["id"]
        return world

    def wait_for_host(self, host_id: str, state: str = "up", seconds: float = 60) -> None:
        wait.until(f"host {host_id} {state}", lambda: self.api.hosts.get(host_id)["state"] == state, seconds)

    def machine(self, name: str, *, disks: int = 1, mib: int = 256, **guest: Any) -> Machine:
        """Create a VM of the writing guest that is down; `guest` goes to deploy.guest.image.cmdline."""
        log = self.stack.folder / f"{name}.console"
        boot = {
            "kernel": str(self.guest.kernel),
            "initrd": str(self.guest.initrd),
            "cmdline": image.cmdline(**guest),
            "serial_log": str(log),
        }
        spec = {"name": name, "cluster_id": self.cluster_id, "memory": 128 * MIB, "display": "none", "boot": boot}
        vm = self.api.vms.create(spec)
        made = [self._disk(vm["id"], f"{name}-disk{number + 1}", mib) for number in range(disks)]
        machine = Machine(self.api, vm["id"], made, log, self.stack.domain / self.domain_id, boot, dict(guest))
        self.machines.append(machine)
        return machine

    def _disk(self, vm_id: str, alias: str, mib: int) -> str:
        body = {"alias": alias, "domain_id": self.domain_id, "capacity": mib * MIB, "vm_id": vm_id}
        return str(self.api.disks.create(body, key=str(uuid.uuid4()))["id"])
