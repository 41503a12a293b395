"""Merges of VMs that are down, as a host of the fakes does them: under the VM's lease, record and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts import errors
from tests.fakes import agent_pull
from tests.fakes.agent_storage import Facts
from tests.fakes.agent_vm import Job

if TYPE_CHECKING:
    from tests.fakes.agent_world import World


def begin(world: World, ask: Facts) -> Facts:
    disk_id, volumes = ask["disk"]["disk_id"], world.storage.image(ask["disk"]["disk_id"]).volumes
    if ask["vm_id"] in world.vms:
        raise errors.VmWrongState(vm_id=ask["vm_id"], state="running", action="an offline merge", needs="down")
    job = world.offline.get(disk_id)
    if job is not None and not job.has_ends(ask):
        raise errors.ForeignJob(disk_id=disk_id, job=f"offline merge of {job.top_id}")
    gone = volumes.get(ask["base_id"] if ask["pull"] else ask["top_id"])
    if job is not None or gone is None or gone.legality == "illegal":
        return {}
    world.put_back(disk_id)
    found = world.storage.chain(disk_id)
    wanted = [*([ask["child_id"]] if ask["child_id"] else []), ask["top_id"], *ask["between"], ask["base_id"]]
    at = found.index(wanted[0]) if wanted[0] in found else 0
    if found[at : at + len(wanted)] != wanted:
        raise errors.ChainDiffers(disk_id=disk_id, reason=f"the storage has {found}")
    if ask["pull"] and volumes[ask["base_id"]].backing_id != ask["below_id"]:
        raise errors.ChainDiffers(disk_id=disk_id, reason=f"{ask['base_id']} does not stand on {ask['below_id']}")
    ends = (ask["base_id"], ask["top_id"], ask["child_id"])
    more = {"between": ask["between"], "pull": ask["pull"], "below_id": ask["below_id"]}
    world.offline[disk_id] = Job(*ends, end=world.job_bytes, speed=ask["bandwidth"], **more)
    world.writing[disk_id] = ask["vm_id"]
    world.storage.leases[ask["vm_id"]] = ask["lease"]["sanlock_id"]
    return {}


def facts(world: World, disk_id: str) -> Facts | None:
    job = world.offline.get(disk_id)
    if job is None:
        return None
    return {**job.facts(), "type": "offline_pull" if job.pull else "offline", "status": "running", "ready": False}


def limit(world: World, ask: Facts) -> bool:
    """Whether there is one."""
    job = world.offline.get(ask["disk"]["disk_id"])
    if job is not None:
        job.speed = ask["bandwidth"]
    return job is not None


def cancel(world: World, ask: Facts) -> None:
    disk_id = ask["disk"]["disk_id"]
    job = world.offline.get(disk_id) if ask["top_id"] else None
    if job is None:
        return
    if not job.has_ends(ask):
        raise errors.ForeignJob(disk_id=disk_id, job=f"offline merge of {job.top_id}")
    end(world, disk_id, "cancelled")


def copy(world: World) -> None:
    """A moment passes; what is copied is recorded at once."""
    for disk_id, job in list(world.offline.items()):
        job.cur = min(job.end, job.cur + world.job_rate)
        if job.cur < job.end:
            world.news.append(("job", world.writing[disk_id], disk_id, "running", job.cur, job.end))
            continue
        if job.pull:
            agent_pull.finish(world, disk_id, job)
            end(world, disk_id, "completed")
            continue
        if job.child_id is not None:
            child = world.storage.volume(disk_id, job.child_id)
            child.backing_id = child.parent_id = job.base_id
        else:
            world.storage.volume(disk_id, job.base_id).volume_type = "leaf"
        world.drop(disk_id, {"top_id": job.top_id, "base_id": job.base_id, "between": job.between})
        for volume_id in job.between:
            world.storage.volume(disk_id, volume_id).legality = "illegal"
        end(world, disk_id, "completed")


def end(world: World, disk_id: str, status: str) -> None:
    """It is over, or its writer was killed."""
    job, vm_id = world.offline.pop(disk_id), world.writing.pop(disk_id)
    world.storage.leases[vm_id] = None
    world.news.append(("job", vm_id, disk_id, status, job.cur, job.end))
