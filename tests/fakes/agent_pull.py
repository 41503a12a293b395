"""Pulls, as a host of the fakes does them: layers go up into the active volume; nothing counts but the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts import errors
from tests.fakes.agent_storage import Facts, Volume
from tests.fakes.agent_vm import Job

if TYPE_CHECKING:
    from tests.fakes.agent_world import World


def start(world: World, ask: Facts) -> Facts:
    disk_id = ask["disk"]["disk_id"]
    world.take_claim(disk_id, ask["claim"])
    vm = world.running(ask["vm_id"], "the pull was to start")
    job, chain = vm.jobs.get(disk_id), vm.chains[disk_id]
    if job is not None and not job.has_ends(ask):
        raise errors.ForeignJob(disk_id=disk_id, job=f"{job.facts()['type']} of {job.top_id}")
    if job is None and ask["base_id"] in chain:
        below = [ask["below_id"]] if ask["below_id"] else []
        going = [ask["top_id"], *ask["between"], ask["base_id"]]
        if chain[: len(going) + 1] != going + below:
            raise errors.ChainDiffers(disk_id=disk_id, reason=f"QEMU has {chain}")
        more = {"between": ask["between"], "pull": True, "below_id": ask["below_id"]}
        ends = (ask["base_id"], ask["top_id"], None)
        vm.jobs[disk_id] = Job(*ends, end=world.job_bytes, speed=ask["bandwidth"], **more)
    elif job is None:
        record(world, ask)
    return {}


def record(world: World, ask: Facts) -> None:
    """One that was begun is finished; to begin it, a QEMU must live and have left base."""
    disk_id = ask["disk"]["disk_id"]
    top, volumes = world.storage.volume(disk_id, ask["top_id"]), world.storage.image(disk_id).volumes
    base, vm = volumes.get(ask["base_id"]), world.with_disk(ask["vm_id"], disk_id)
    begun = base is None or base.legality == "illegal" or top.parent_id == top.backing_id
    if not begun and (vm is None or ask["base_id"] in vm.chains[disk_id]):
        raise errors.JobFailed(disk_id=disk_id, reason="it was not recorded")
    _write_down(world, disk_id, top)


def finish(world: World, disk_id: str, job: Job) -> None:
    """qemu-img's end: header and record."""
    top = world.storage.volume(disk_id, job.top_id)
    top.backing_id = job.below_id
    _write_down(world, disk_id, top)


def _write_down(world: World, disk_id: str, top: Volume) -> None:
    volumes = world.storage.image(disk_id).volumes
    at = top.parent_id
    while at is not None and at != top.backing_id and at in volumes:
        volumes[at].legality = "illegal"
        at = volumes[at].backing_id
    top.parent_id = top.backing_id
