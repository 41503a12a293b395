"""One host of the fakes: VMs, chains and block jobs in memory. No bus here; every method is one promise."""

from __future__ import annotations

from typing import Any

from contracts import errors
from tests.fakes import agent_offline, agent_pull
from tests.fakes.agent_storage import MIB, Facts, Storage
from tests.fakes.agent_vm import FakeVm, Job


# budget: a whole host in memory; its parts share one lock
class World:
    """`host_id`'s VMs over a storage that may be shared. `obedient`: guests follow a request to shut down.

    `job_bytes`: what a commit has to copy; `job_rate`: bytes that each tick copies (0 keeps jobs where they are).
    `guest_rate`: bytes that each tick the guests write, to be copied too where top is active.
    `news`: ("vm", vm_id) and ("job", vm_id, disk_id, status, cur, end) that have not been told yet.
    """

    def __init__(self, host_id: str, storage: Storage | None = None) -> None:
        self.host_id = host_id
        self.storage = storage or Storage()
        self.vms: dict[str, FakeVm] = {}
        self.claims: dict[tuple[str, str], int] = {}
        self.cancelled: dict[tuple[str, str], int] = {}
        self.obedient = True
        self.job_bytes = 64 * MIB
        self.job_rate = 16 * MIB
        self.guest_rate = 0
        self.quiesced = False
        self.news: list[tuple[Any, ...]] = []
        self.lockspaces: dict[str, Facts] = {}
        self.offline: dict[str, Job] = {}
        self.writing: dict[str, str] = {}  # whose lease each of these holds

    # -- lockspaces and leases ----------------------------------------------------------------------------

    def join_domain(self, ask: Facts) -> Facts:
        facts = {"domain_id": ask["domain"]["id"], "state": "joined", "problem": None}
        return self.lockspaces.setdefault(ask["domain"]["id"], facts)

    def leave_domain(self, ask: Facts) -> Facts:
        self.lockspaces.pop(ask["domain"]["id"], None)
        return {"domain_id": ask["domain"]["id"], "state": "left", "problem": None}

    def drop_lease(self, ask: Facts) -> Facts:
        self._refuse_held(ask["vm_id"])
        self.storage.leases.pop(ask["vm_id"], None)
        return {}

    def _refuse_held(self, vm_id: str, but: Job | None = None) -> None:
        holder = self.storage.leases.get(vm_id)
        if holder and but is None:
            raise errors.LeaseHeld(vm_id=vm_id, holder=f"host number {holder}", sanlock_id=holder)

    # -- domains and volumes ------------------------------------------------------------------------------

    def create_domain(self, ask: Facts) -> Facts:
        return self.storage.create_domain(ask)

    def look_domain(self, ask: Facts) -> Facts:
        return self.storage.domain(ask["domain"]).facts()

    def delete_domain(self, ask: Facts) -> Facts:
        return self.storage.delete_domain(ask["domain"])

    def scan_domain(self, ask: Facts) -> Facts:
        return self.storage.scan(ask["domain"])

    def create_volume(self, ask: Facts) -> Facts:
        return self.storage.create_volume(ask)

    def copy_disk(self, ask: Facts) -> Facts:
        return self.storage.copy_disk(ask)

    def create_thin_disk(self, ask: Facts) -> Facts:
        return self.storage.create_thin_disk(ask)

    def delete_disk(self, ask: Facts) -> Facts:
        return self.storage.delete_disk(ask["disk"])

    # -- VMs ----------------------------------------------------------------------------------------------

    def start_vm(self, spec: Facts) -> Facts:
        if spec["id"] in self.vms:
            return self.vms[spec["id"]].facts()
        disks = [plugged["disk"] for plugged in spec["disks"]]
        for disk in disks:
            self.storage.domain(disk["domain"])
            held = self.storage.image(disk["disk_id"]).locked_by
            if held:
                raise errors.VolumeInUse(volume_id=self.storage.leaf(disk["disk_id"]), by=f"QEMU on {held}")
        for disk in disks:
            self.put_back(disk["disk_id"])
        if spec.get("lease"):
            self._refuse_held(spec["id"])
            self.storage.leases[spec["id"]] = spec["lease"]["sanlock_id"]
        chains = {disk["disk_id"]: self.storage.chain(disk["disk_id"]) for disk in disks}
        for disk_id in chains:
            self.storage.image(disk_id).locked_by = self.host_id
        vm = self.vms[spec["id"]] = FakeVm(spec, chains=chains)
        self.news.append(("vm", spec["id"]))
        return vm.facts()

    def shut_down_vm(self, ask: Facts) -> Facts:
        vm = self.vms.get(ask["vm_id"])
        if vm is not None:
            vm.asked_down = True
        return self.look_vm(ask)

    def power_off_vm(self, ask: Facts) -> Facts:
        self.end_vm(ask["vm_id"])
        return self.look_vm(ask)

    def look_vm(self, ask: Facts) -> Facts:
        vm = self.vms.get(ask["vm_id"])
        return vm.facts() if vm else {"vm_id": ask["vm_id"], "state": "down"}

    def end_vm(self, vm_id: str) -> None:
        """The VM's QEMU ends: by itself, killed, or powered off."""
        vm = self.vms.pop(vm_id, None)
        if vm is None:
            return
        for disk_id in vm.chains:
            self.storage.image(disk_id).locked_by = None
        if vm_id in self.storage.leases:
            self.storage.leases[vm_id] = None
        for disk_id, job in vm.jobs.items():
            self.news.append(("job", vm_id, disk_id, "failed", job.cur, job.end))
        self.news.append(("vm", vm_id))

    # -- looking at a disk --------------------------------------------------------------------------------

    def look_disk(self, ask: Facts) -> Facts:
        disk = ask["disk"]
        if ask["claim"]:
            self._check_claim(disk["disk_id"], ask["claim"])
        storage = self.storage.view(disk)
        vm = self.with_disk(ask["vm_id"], disk["disk_id"])
        return {
            "vm_id": ask["vm_id"],
            "disk_id": disk["disk_id"],
            **_views(vm, disk["disk_id"]),
            "storage": storage,
            "unsure": _unsure(vm) if vm else None,
            "paused_by_pivot": bool(vm and vm.state == "paused" and vm.paused_by == "agent"),
            "offline": agent_offline.facts(self, disk["disk_id"]),
        }

    def with_disk(self, vm_id: str | None, disk_id: str) -> FakeVm | None:
        found = [vm for id_, vm in self.vms.items() if disk_id in vm.chains and vm_id in (None, id_)]
        return found[0] if found else None

    def _check_claim(self, disk_id: str, claim: Facts) -> None:
        key = (disk_id, claim["flow_id"])
        highest = self.claims.get(key, 0)
        if claim["number"] < highest:
            raise errors.StaleClaim(claim=claim["number"], highest=highest, disk_id=disk_id)
        self.claims[key] = claim["number"]

    def take_claim(self, disk_id: str, claim: Facts) -> None:
        """Also refused after a cancel."""
        self._check_claim(disk_id, claim)
        cancelled = self.cancelled.get((disk_id, claim["flow_id"]), 0)
        if claim["number"] <= cancelled:
            raise errors.StaleClaim(claim=claim["number"], highest=cancelled + 1, disk_id=disk_id)

    # -- snapshots and merges -----------------------------------------------------------------------------

    def switch_leaves(self, ask: Facts) -> Facts:
        vm = self.vms.get(ask["vm_id"])
        for new in ask["disks"]:
            self.take_claim(new["disk"]["disk_id"], ask["claim"])
        for new in ask["disks"]:
            self._switch(vm, new)
        return {"quiesced": self.quiesced and vm is not None, "live": vm is not None}

    def _switch(self, vm: FakeVm | None, new: Facts) -> None:
        disk_id, volume_id = new["disk"]["disk_id"], new["volume_id"]
        if volume_id not in self.storage.image(disk_id).volumes:
            if self.storage.leaf(disk_id) != new["parent_id"]:
                raise errors.ChainDiffers(disk_id=disk_id, reason=f"{new['parent_id']} is not its leaf")
            parent = self.storage.volume(disk_id, new["parent_id"])
            ask = {"disk": new["disk"], "volume_id": volume_id, "parent_id": new["parent_id"]}
            self.storage.create_volume({**ask, "capacity": parent.capacity, "format": "cow"})
        made = self.storage.volume(disk_id, volume_id)
        if made.backing_id != new["parent_id"] or made.legality != "legal":
            raise errors.ChainDiffers(disk_id=disk_id, reason=f"{volume_id} does not lie on {new['parent_id']}")
        if vm is not None and volume_id not in vm.chains[disk_id]:
            vm.chains[disk_id].insert(0, volume_id)

    def start_commit(self, ask: Facts) -> Facts:
        disk_id = ask["disk"]["disk_id"]
        self.take_claim(disk_id, ask["claim"])
        vm = self.running(ask["vm_id"], "the commit was to start")
        job = vm.jobs.get(disk_id)
        if job is not None and not job.has_ends(ask):
            raise errors.ForeignJob(disk_id=disk_id, job=f"commit of {job.top_id}")
        chain = vm.chains[disk_id]
        if job is None and ask["top_id"] in chain:
            at = chain.index(ask["top_id"])
            below = [*ask["between"], ask["base_id"]]
            if chain[at + 1 : at + 1 + len(below)] != below or (ask["child_id"] is None) != (at == 0):
                raise errors.ChainDiffers(disk_id=disk_id, reason="base is not below top, or top is not active")
            ends = (ask["base_id"], ask["top_id"], ask["child_id"])
            vm.jobs[disk_id] = Job(*ends, end=self.job_bytes, speed=ask["bandwidth"], between=ask["between"])
        elif job is None and ask["child_id"] is not None:
            self._record(disk_id, ask)
        return {}

    def merge_offline(self, ask: Facts) -> Facts:
        self.take_claim(ask["disk"]["disk_id"], ask["claim"])
        self._refuse_held(ask["vm_id"], but=self.offline.get(ask["disk"]["disk_id"]))
        return agent_offline.begin(self, ask)

    def start_pull(self, ask: Facts) -> Facts:
        return agent_pull.start(self, {**ask, "pull": True})

    def set_bandwidth(self, ask: Facts) -> Facts:
        self.take_claim(ask["disk"]["disk_id"], ask["claim"])
        if agent_offline.limit(self, ask):
            return {}
        vm = self.vms.get(ask["vm_id"])
        job = vm.jobs.get(ask["disk"]["disk_id"]) if vm else None
        if job is not None:
            job.speed = ask["bandwidth"]
        return {}

    def cancel_job(self, ask: Facts) -> Facts:
        disk_id = ask["disk"]["disk_id"]
        self._check_claim(disk_id, ask["claim"])
        self.cancelled[(disk_id, ask["claim"]["flow_id"])] = ask["claim"]["number"]
        agent_offline.cancel(self, ask)
        vm = self.vms.get(ask["vm_id"])
        job = vm.jobs.get(disk_id) if vm and ask["top_id"] else None
        if job is not None and not job.has_ends(ask):
            raise errors.ForeignJob(disk_id=disk_id, job=f"commit of {job.top_id}")
        if vm is None:
            self.put_back(disk_id)
        if vm is not None and job is None and ask["pull"] and ask["base_id"] not in vm.chains[disk_id]:
            agent_pull.record(self, ask)
        if vm is not None and job is None and ask["child_id"] and ask["top_id"] not in vm.chains[disk_id]:
            self._record(disk_id, {"between": [], **ask})
        if vm is not None and job is not None:
            del vm.jobs[disk_id]
            self.news.append(("job", ask["vm_id"], disk_id, "cancelled", job.cur, job.end))
        return {}

    def pivot(self, ask: Facts) -> Facts:
        disk_id = ask["disk"]["disk_id"]
        self.take_claim(disk_id, ask["claim"])
        vm = self.running(ask["vm_id"], "the pivot was to be made")
        if vm.chains[disk_id][0] == ask["top_id"]:
            job = vm.jobs.get(disk_id)
            if job is None or not job.ready:
                raise errors.JobFailed(disk_id=disk_id, reason="it is not ready")
            del vm.jobs[disk_id]
            del vm.chains[disk_id][: 1 + len(ask["between"])]
            self.drop(disk_id, ask)
            self.storage.volume(disk_id, ask["base_id"]).volume_type = "leaf"
            self.news.append(("job", ask["vm_id"], disk_id, "completed", job.end, job.end))
        return {"suspend_ms": 1.0, "pivot_ms": 2.0, "look_ms": 1.0, "mark_ms": 5.0, "resume_ms": 1.0}

    def record_merge(self, ask: Facts) -> Facts:
        disk_id = ask["disk"]["disk_id"]
        self._check_claim(disk_id, ask["claim"])
        self._record(disk_id, ask)
        return {}

    def record_pull(self, ask: Facts) -> Facts:
        self._check_claim(ask["disk"]["disk_id"], ask["claim"])
        agent_pull.record(self, ask)
        return {}

    def _record(self, disk_id: str, ask: Facts) -> None:
        """A record that was begun is finished; to begin one, a QEMU must live and have left top."""
        if ask["child_id"] is not None:
            child, volumes = self.storage.volume(disk_id, ask["child_id"]), self.storage.image(disk_id).volumes
            begun = ask["top_id"] not in volumes or volumes[ask["top_id"]].legality == "illegal"
            vm = self.with_disk(ask["vm_id"], disk_id)
            if not begun and child.parent_id != ask["base_id"] and (vm is None or ask["top_id"] in vm.chains[disk_id]):
                raise errors.JobFailed(disk_id=disk_id, reason="it was not recorded")
            child.parent_id = ask["base_id"]
        self.drop(disk_id, ask)
        for volume_id in {*ask["between"]} & self.storage.image(disk_id).volumes.keys():
            self.storage.volume(disk_id, volume_id).legality = "illegal"

    def put_back(self, disk_id: str) -> None:
        """Headers that a merge changed without a record name their old top again."""
        volumes = self.storage.image(disk_id).volumes
        for one in volumes.values():
            top = volumes.get(one.parent_id or "")
            if one.backing_id != one.parent_id and top is not None and top.legality == "legal":
                one.backing_id = one.parent_id

    def drop(self, disk_id: str, ask: Facts) -> None:
        top = self.storage.image(disk_id).volumes.get(ask["top_id"])
        if top is not None:
            top.legality, top.heir = "illegal", ask["base_id"] if ask["between"] else None

    def record_chain(self, ask: Facts) -> Facts:
        disk_id = ask["disk"]["disk_id"]
        self._check_claim(disk_id, ask["claim"])
        vm = self.with_disk(None, disk_id)
        if vm is None:
            self.put_back(disk_id)
        seen = vm.chains[disk_id] if vm else self.storage.chain(disk_id)
        if seen != ask["chain"]:
            raise errors.ChainDiffers(disk_id=disk_id, reason="the chain has changed meanwhile")
        for volume_id in ask["unused"]:
            self.storage.volume(disk_id, volume_id).legality = "illegal"
        for volume_id in ask["chain"]:
            volume = self.storage.volume(disk_id, volume_id)
            volume.parent_id = volume.backing_id
        return {}

    def discard_volume(self, ask: Facts) -> Facts:
        disk_id = ask["disk"]["disk_id"]
        self._check_claim(disk_id, ask["claim"])
        vm = self.with_disk(None, disk_id)
        for volume_id in [ask["volume_id"], *ask["below"]]:
            if vm is not None and volume_id in vm.chains[disk_id]:
                raise errors.VolumeInUse(volume_id=volume_id, by=f"QEMU of {vm.spec['name']}")
            self.storage.delete_volume(disk_id, volume_id)
        return {}

    def running(self, vm_id: str, action: str) -> FakeVm:
        vm = self.vms.get(vm_id)
        if vm is None:
            raise errors.VmStopped(vm_id=vm_id, action=action)
        if vm.state == "unsure":
            raise errors.VmUnsure(vm_id=vm_id, reason=vm.reason)
        return vm

    # -- time ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A moment passes: jobs copy, guests that were asked to shut down do so."""
        for vm_id, vm in list(self.vms.items()):
            if vm.asked_down and self.obedient:
                self.end_vm(vm_id)
                continue
            for disk_id, job in list(vm.jobs.items()):
                self._copy(vm, disk_id, job)
        agent_offline.copy(self)

    def _copy(self, vm: FakeVm, disk_id: str, job: Job) -> None:
        if job.ready or not self.job_rate:
            return
        job.end += self.guest_rate if job.active else 0
        job.cur = min(job.end, job.cur + self.job_rate)
        status = "ready" if job.ready else "running"
        if job.cur >= job.end and not job.active:
            status = "completed"
            del vm.jobs[disk_id]
            for gone in (job.base_id if job.pull else job.top_id, *job.between):
                vm.chains[disk_id].remove(gone)
            carrier = job.top_id if job.pull else job.child_id
            assert carrier is not None
            self.storage.volume(disk_id, carrier).backing_id = job.below_id if job.pull else job.base_id
        self.news.append(("job", vm.spec["id"], disk_id, status, job.cur, job.end))


def _unsure(vm: FakeVm) -> str | None:
    if vm.mute:
        return "a QEMU process lives, but its monitor does not answer"
    return vm.reason if vm.state == "unsure" else None


def _views(vm: FakeVm | None, disk_id: str) -> Facts:
    """What QEMU and libvirt say of one disk; here they agree, unless QEMU is mute."""
    if vm is None:
        nothing: Facts = {"chain": [], "job": None}
        libvirt = {**nothing, "state": "absent", "mirror": False, "mirror_ready": False}
        return {"qemu": {**nothing, "state": "absent", "pid": None, "paths": []}, "libvirt": libvirt}
    job = vm.jobs.get(disk_id)
    state = "paused" if vm.state == "paused" else "running"
    both = {"state": state, "chain": list(vm.chains[disk_id]), "job": job.facts() if job else None}
    mirror = {"mirror": bool(job and job.active), "mirror_ready": bool(job and job.ready)}
    if vm.mute:
        told: Facts = {"state": "unreachable", "chain": [], "job": None, "pid": vm.pid, "paths": []}
        return {"qemu": told, "libvirt": {**both, **mirror}}
    return {"qemu": {**both, "pid": vm.pid, "paths": []}, "libvirt": {**both, **mirror}}
