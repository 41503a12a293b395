"""A small site for tests of the snapshots service: inventory played on the real bus, hosts are FakeAgents.

site = Site(bus); host = site.host(); vm = site.vm(host, disks=2)      # running there
site.service(url, folder)                                             # the real service as a process
job = site.take(vm); site.end_of(job)["state"] == "done"
job = site.remove(snapshot_id); site.end_of(job)
"""

from __future__ import annotations

import pathlib
import time
import uuid
from typing import Any

from contracts import errors, inventory, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB, Volume
from tests.fakes.bus import Bus
from tests.fakes.process import Process

NOW = "2026-01-01T00:00:00.000000Z"
Facts = dict[str, Any]


def new() -> str:
    return str(uuid.uuid4())


# budget: one object is what every test of the service speaks through
class Site:
    """One data center, cluster and domain. Change `vms`, `domain`, `hosts`, `leases`, `start_first` while it runs."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.cluster_id, self.data_center_id = new(), new()
        self.agents: list[FakeAgent] = []
        self.hosts: dict[str, Facts] = {}
        self.vms: dict[str, Facts] = {}
        self.disks: dict[str, Facts] = {}
        self.domain = self._domain()
        self.leases, self.start_first = True, 0.0
        self.process: Process | None = None
        self._play_inventory()

    # -- what there is ------------------------------------------------------------------------------------

    def host(self) -> FakeAgent:
        """A host that is up; all of them share the storage."""
        storage = self.agents[0].world.storage if self.agents else None
        agent = FakeAgent(self.bus, new(), storage, interval=60, tick=0.05)
        ask = {"domain": self.ref(), "name": "d", "data_center_id": self.data_center_id}
        agent.world.create_domain(ask)
        agent.start()
        self.agents.append(agent)
        self.hosts[agent.host_id] = {
            **_versioned(agent.host_id, "host"),
            "cluster_id": self.cluster_id,
            "state": "up",
            "problem": None,
            "facts": None,
            "boot_id": None,
            "clock_offset": 0.0,
            "last_seen": NOW,
        }
        return agent

    def vm(self, host: FakeAgent, disks: int = 1, *, running: bool = True) -> str:
        vm_id = new()
        self.vms[vm_id] = self._vm(vm_id, [self.disk(host, vm_id) for _ in range(disks)])
        if running:
            self.start(host, vm_id)
        return vm_id

    def disk(self, host: FakeAgent, vm_id: str | None) -> Facts:
        """A disk of 1 GiB with one volume of 100 MiB."""
        disk_id, first = new(), new()
        ask = {"disk": {"disk_id": disk_id, "domain": self.ref()}, "volume_id": first, "parent_id": None}
        host.world.create_volume({**ask, "capacity": 1024 * MIB, "format": "cow"})
        host.world.storage.volume(disk_id, first).actual_size = 100 * MIB
        self.disks[disk_id] = {
            **{key: value for key, value in _versioned(disk_id, "disk").items() if key != "name"},
            "alias": f"disk {len(self.disks)}",
            "domain_id": self.domain["id"],
            "capacity": 1024 * MIB,
            "format": "cow",
            "first_volume_id": first,
            "vm_id": vm_id,
            "bus": "virtio",
            "boot_order": None,
            "state": "ok",
            "problem": None,
        }
        return self.disks[disk_id]

    def start(self, host: FakeAgent, vm_id: str) -> None:
        refs = [{"disk": {"disk_id": disk["id"], "domain": self.ref()}} for disk in self.vms[vm_id]["disks"]]
        with host.world.storage.lock:
            host.world.start_vm({"id": vm_id, "name": "vm", "disks": refs})
        self.vms[vm_id] |= {"state": "running", "host_id": host.host_id}

    def stop(self, host: FakeAgent, vm_id: str) -> None:
        """The VM's QEMU ends, and inventory knows it."""
        with host.world.storage.lock:
            host.world.end_vm(vm_id)
        self.vms[vm_id] |= {"state": "down", "host_id": None}

    def ref(self) -> Facts:
        return {"id": self.domain["id"], "path": self.domain["path"]}

    def volumes(self, disk_id: str) -> dict[str, Volume]:
        """What lies in the disk's folder."""
        return self.agents[0].world.storage.image(disk_id).volumes

    def disk_ids(self, vm_id: str) -> list[str]:
        return [disk["id"] for disk in self.vms[vm_id]["disks"]]

    # -- the service --------------------------------------------------------------------------------------

    def service(self, url: str, folder: pathlib.Path, **settings: Any) -> Process:
        """Start the real service (again); its flows are taken over after a second."""
        chosen = {"amqp_uri": self.bus.uri, "database_url": url, "flow_lease": 1.0, **settings}
        self.process = Process("services.snapshots", folder, **chosen).start()
        self.process.wait_for_log("started")
        self.bus.wait_for(snapshots.get_job)
        return self.process

    def restart(self, **settings: Any) -> Process:
        """After a crash: the same service without the crash point."""
        assert self.process is not None
        self.process.kill()
        kept = {key: value for key, value in self.process.settings.items() if key not in ("crash", "state_dir")}
        folder = self.process.folder / uuid.uuid4().hex[:4]
        url = str(kept.pop("database_url"))
        return self.service(url, folder, **{**kept, **settings})

    def end(self) -> None:
        if self.process is not None and self.process.alive():
            self.process.kill()
        for agent in self.agents:
            agent.stop()

    def call(self, promise: Any, **request: Any) -> Facts:
        return self.bus.call(promise, request)

    def take(self, vm_id: str, **more: Any) -> Facts:
        """Ask for a snapshot; answers the job."""
        return self.call(snapshots.create_snapshot, **{"id": new(), "job_id": new(), "vm_id": vm_id, **more})

    def taken(self, vm_id: str, **more: Any) -> str:
        """Take a snapshot to its end; answers its id."""
        job = self.end_of(self.take(vm_id, **more))
        assert job["state"] == "done", job
        return str(job["snapshot_id"])

    def remove(self, snapshot_id: str, **more: Any) -> Facts:
        """Ask for a removal; answers the job."""
        return self.call(snapshots.remove_snapshot, **{"id": snapshot_id, "job_id": new(), **more})

    def remove_many(self, snapshot_ids: list[str] | None = None, **more: Any) -> Facts:
        """Ask for a removal of many; answers it."""
        return self.call(snapshots.remove_snapshots, **{"job_id": new(), "snapshots": snapshot_ids, **more})

    def removal(self, removal_id: str) -> Facts:
        return self.call(snapshots.get_removal, id=removal_id)

    def retry(self, removal_id: str, **more: Any) -> Facts:
        return self.call(snapshots.retry_removal, **{"id": removal_id, "job_id": new(), **more})

    def job(self, job_id: str) -> Facts:
        return self.call(snapshots.get_job, id=job_id)

    def merges(self, removal_id: str) -> list[Facts]:
        return list(self.call(snapshots.list_merges, removal_id=removal_id)["items"])

    def end_of(self, job: Facts, *states: str, timeout: float = 90.0) -> Facts:
        """The job once it has ended, or is in one of these states."""
        wanted = states or ("done", "undone")
        return self.until(lambda: self._in(job["id"], wanted), f"job {job.get('kind', '')} {wanted}", timeout)

    def until(self, look: Any, what: str, timeout: float = 60.0) -> Any:
        ends = time.monotonic() + timeout
        while True:
            found = look()
            if found:
                return found
            log = self.process.log[-4000:] if self.process else ""
            assert time.monotonic() < ends, f"{what} did not happen in {timeout} s\n{log}"
            time.sleep(0.05)

    def chain(self, disk_id: str) -> list[str]:
        """The database's chain, first volume first."""
        told = self.call(snapshots.get_chain, disk_id=disk_id)
        return [row["volume_id"] for row in told["volumes"]]

    def agrees(self, host: FakeAgent, vm_id: str) -> bool:
        """Do database, storage and QEMU show the same chain of every disk, and nothing besides?"""
        for disk_id in self.disk_ids(vm_id):
            known = self.chain(disk_id)
            storage = host.world.storage
            assert known == list(reversed(storage.chain(disk_id))), (known, storage.chain(disk_id))
            assert set(known) == set(self.volumes(disk_id)), "something is left behind"
            vm = host.world.vms.get(vm_id)
            assert vm is None or known == list(reversed(vm.chains[disk_id]))
        return True

    def _in(self, job_id: str, states: tuple[str, ...]) -> Facts | None:
        try:
            job = self.job(job_id)
        except (errors.ServiceAway, errors.NoAnswer):
            return None
        return job if job["state"] in states else None

    # -- inventory ----------------------------------------------------------------------------------------

    def _play_inventory(self) -> None:
        rows = {"next": None, "total": 0}
        answers = {
            inventory.get_vm: lambda ask: _one("vm", self.vms, ask["id"]),
            inventory.get_disk: lambda ask: _one("disk", self.disks, ask["id"]),
            inventory.get_host: lambda ask: _one("host", self.hosts, ask["id"]),
            inventory.get_storage_domain: lambda ask: _one("domain", {self.domain["id"]: self.domain}, ask["id"]),
            inventory.list_storage_domains: lambda ask: {**rows, "items": [self.domain]},
            inventory.list_vms: lambda ask: {**rows, "items": list(self.vms.values())},
            inventory.list_disks: lambda ask: {**rows, "items": list(self.disks.values())},
            inventory.list_clusters: lambda ask: {**rows, "items": [self._cluster()]},
            inventory.list_hosts: lambda ask: {**rows, "items": list(self.hosts.values())},
            inventory.vm_lease: self._lease_of,
        }
        for promise, answer in answers.items():
            self.bus.answer(promise, answer)

    def _lease_of(self, ask: Facts) -> Facts:
        state = self.vms[ask["id"]]["state"]
        if state != "down":
            raise errors.VmWrongState(vm_id=ask["id"], state=state, action="writing its disks", needs="down")
        lease = {"domain": self.ref(), "sanlock_id": 1, "io_timeout": 1} if self.leases else None
        return {"lease": lease, "wait": self.start_first}

    def _cluster(self) -> Facts:
        return {**_versioned(self.cluster_id, "cluster"), "data_center_id": self.data_center_id, "description": ""}

    def _domain(self) -> Facts:
        return {
            **_versioned(new(), "domain"),
            "data_center_id": self.data_center_id,
            "path": "/mnt/store",
            "type": "file",
            "layout": 5,
            "state": "active",
            "problem": None,
            "total": 100 * 1024 * MIB,
            "free": 50 * 1024 * MIB,
        }

    def _vm(self, vm_id: str, disks: list[Facts]) -> Facts:
        return {
            **_versioned(vm_id, "vm"),
            "cluster_id": self.cluster_id,
            "data_center_id": self.data_center_id,
            "description": "",
            "memory": 1024 * MIB,
            "cpus": 1,
            "firmware": "bios",
            "display": "none",
            "boot": None,
            "nics": [],
            "disks": disks,
            "state": "down",
            "reason": "",
            "host_id": None,
        }


def _versioned(id_: str, name: str) -> Facts:
    return {"id": id_, "name": name, "version": 1, "created_at": NOW}


def _one(kind: str, known: dict[str, Facts], id_: str) -> Facts:
    if id_ not in known:
        raise errors.NotFound(kind=kind, id=id_)
    return known[id_]
