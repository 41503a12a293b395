"""What writes when a snapshot of a VM that is down is merged: a process that holds the VM's lease for all of it.

    put back what was not recorded -> look at the chain and at everybody else's references -> qemu-img commit
    -> dirty bitmaps -> sync base -> the child's header := base, synced and read back -> the record (top's mark first)

or, where base holds far less, up: the same looks -> qemu-img rebase -> sync top -> the record (base's mark first).

Until that mark the chain of before holds everything: reading through top, or through what lies between, gives the same
whatever was copied. So a death at any point costs the copy and nothing else, and the next one begins from what the
storage shows; no success of qemu-img's is remembered anywhere.

qemu-img inherits sanlock's connection: the lease is free only when both have ended. It dies with this process, and
this process with the agent, or with a sanlock that has hung up: nobody renews the lease then.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from chassis import crash
from contracts import errors
from services.hostagent import (
    bitmaps,
    chain,
    domain,
    files,
    layout,
    merging,
    offline_copy,
    process,
    pulling,
    sanlocks,
    scan,
    volume,
)

LOOK = 0.2  # seconds between two tries of what somebody has open
LOCK_SECONDS = 10.0  # a QEMU that was just being started has the files open until libvirt sees that the lease is ours

Order = dict[str, Any]
"""vm, space and offset of its lease, domain, image, base, top, child, between, pull, below, bandwidth, agent's pid."""
Volumes = dict[str, chain.Volume]
Told = TypeVar("Told")


def merge(order: Order) -> None:
    """Raises what contracts.hostagent.merge_offline declares; then the chain of before counts."""
    place, image = domain.opened(order["domain"]), order["image"]
    if process.find(order["vm"]) is not None:  # it came up before the lease was ours; paused, it holds none
        raise errors.VmWrongState(vm_id=order["vm"], state="running", action="an offline merge", needs="down")
    _refuse_dropped(order)
    merging.put_back(order["domain"], image)
    with files.guard("merge_offline", place.image(image), place.id), files.image_lock(place, image):
        volumes = {v.id: v for v in volume.read_image(place, image)}
        (_up if order["pull"] else _down)(place, order, volumes)
        crash.point("offline.after_record")


def _down(place: layout.Place, order: Order, volumes: Volumes) -> None:
    image, base, top, child, between = (order[name] for name in ("image", "base", "top", "child", "between"))
    if not is_done(volumes, base, top, child):
        work = _begin(place, order, volumes)
        _unlocked(lambda: offline_copy.down(work, volumes))
        crash.point("offline.after_copy")
        if lost := bitmaps.carry(place, image, [top, *between], base):
            offline_copy.say({"lost": lost})
        files.sync(place.file(image, base))
        _switch(place, order, volumes[base])
    record = {"image": image, "base": base, "top": top, "child": child, "between": between}
    merging.record_merge(order["domain"], **record, concluded=True)


def _up(place: layout.Place, order: Order, volumes: Volumes) -> None:
    """The other way round. qemu-img changes the header of top itself, as the last thing; the record decides here too,
    and begins with the mark of base."""
    image, base, top, below = (order[name] for name in ("image", "base", "top", "below"))
    ended = not (top in volumes and pulling.begun(volumes, base, top, below))
    if ended:
        work = _begin(place, order, volumes)
        _refuse_unfit(image, volumes, (top, *work.going), below)
        _unlocked(lambda: offline_copy.up(work, volumes, below))
        crash.point("offline.after_copy")
    record = {"image": image, "base": base, "top": top, "ground": below, "between": order["between"]}
    pulling.record_pull(order["domain"], **record, ended=ended)


def _begin(place: layout.Place, order: Order, volumes: Volumes) -> offline_copy.Work:
    """What is to be copied, once nothing is in the way."""
    image, downwards = order["image"], [order["top"], *order["between"], order["base"]]
    refuse_other(image, volumes, order["child"], downwards)
    _refuse_shared(place, image, order["child"], downwards)
    crash.point("offline.before_copy")
    how = {name: order[name] for name in ("base", "top", "between", "pull", "bandwidth", "agent")}
    return offline_copy.Work(place, image, **how)


def _refuse_unfit(image: str, volumes: Volumes, downwards: Sequence[str], below: str | None) -> None:
    """What may not be pulled, or not by qemu-img: some versions of it never end where a volume is smaller than the one
    above it. Raises ChainDiffers; services/snapshots/direction.py plans no such pull."""
    top, base = volumes[downwards[0]], volumes[downwards[-1]]
    if base.backing != below or base.elsewhere:
        reason = f"volume {base.id} stands on {base.backing}, not on {below}"
        raise errors.ChainDiffers(disk_id=image, reason=reason)
    for one in (volumes[volume_id] for volume_id in downwards):
        if not one.pulls or one.capacity != top.capacity:
            reason = f"volume {one.id} is raw, of an old version of qcow2, of another size, or keeps dirty bitmaps"
            raise errors.ChainDiffers(disk_id=image, reason=reason)


def _refuse_dropped(order: Order) -> None:
    """A lease that was dropped before we took it is one that no start will ask for."""
    if sanlocks.find(order["space"], order["vm"])["offset"] != order["offset"]:
        reason = "it was dropped meanwhile"
        raise errors.LeaseFailed(vm_id=order["vm"], domain_id=order["space"]["id"], action="taken", reason=reason)


def _switch(place: layout.Place, order: Order, base: chain.Volume) -> None:
    """The image moves to base: by the child's header, or by the mark of a leaf. Raises JobFailed when that cannot be:
    VolumeInUse is promised to mean that nothing was copied."""
    image, top, child = order["image"], order["top"], order["child"]
    try:
        if child is None:
            _unlocked(lambda: _mark(place, image, top, base.id if order["between"] else None))
        else:
            _unlocked(lambda: merging.rebase(place, image, child, base, _headed))
    except errors.VolumeInUse as used:
        raise errors.JobFailed(disk_id=image, reason=str(used)) from None


def _headed() -> None:
    crash.point("offline.after_header")


def _unlocked(part: Callable[[], Told]) -> Told:
    """Once more while somebody has a file open: whoever it is, the lease is ours, and no guest runs with it."""
    limit = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return part()
        except errors.VolumeInUse:
            if time.monotonic() > limit:
                raise
            time.sleep(LOOK)


def is_done(volumes: Volumes, base: str, top: str, child: str | None) -> bool:
    """Whether top's mark, which comes after all copying, is on the storage: what is left is to write down the rest."""
    dropped = top not in volumes or volumes[top].legality == "illegal"
    return dropped and base in volumes and (child is None or (child in volumes and volumes[child].backing == base))


def refuse_other(image: str, volumes: Volumes, child: str | None, downwards: Sequence[str]) -> None:
    """The chain must be the one that was planned. Raises ChainDiffers, TemplateVolume, ChainBroken, BackingOutside."""
    now = chain.find_leaf(image, volumes.values())
    if now.leaf is None:
        raise now.trouble or errors.ChainBroken(disk_id=image, reason="it has no leaf")
    found = chain.walk(image, volumes.values(), now.leaf)
    wanted = [*([child] if child else []), *downwards]
    where = found.index(wanted[0]) if wanted[0] in found else 0
    if list(found[where : where + len(wanted)]) != wanted or (child is None and where != 0):
        reason = f"the storage has {' > '.join(found)}, where {' > '.join(wanted)} was to be merged"
        raise errors.ChainDiffers(disk_id=image, reason=reason)
    for volume_id in downwards:
        if volumes[volume_id].volume_type == "shared":
            owner = volumes[volume_id].image or image
            raise errors.TemplateVolume(action="A merge", volume_id=volume_id, template_disk_id=owner)


def _refuse_shared(place: layout.Place, image: str, child: str | None, downwards: Sequence[str]) -> None:
    """Raises VolumeInUse when anybody on the domain but the volume above refers to one of these (leaf side first)."""
    found = scan.survey(place)
    for above, volume_id in zip((child, *downwards), downwards, strict=False):
        by = scan.who_refers(found, place, image, volume_id)
        own = f"volume {above} of disk {image}"
        others = [one for one in by if one not in (own, f"the metadata of {own}")]
        if others:
            raise errors.VolumeInUse(volume_id=volume_id, by=", ".join(sorted(others)[:5]))


def _mark(place: layout.Place, image: str, top: str, heir: str | None) -> None:
    """The leaf changes hands, under QEMU's lock on top: a QEMU that is just being started from it has it open."""
    file = place.file(image, top)
    if not os.path.lexists(file):
        return
    with files.qemu_lock(file, top), files.marks_lock(place, image):
        if volume.read_meta(place, image, top).legality != "illegal":
            volume.change(place, image, top, legality="illegal", heir=heir)
    crash.point("offline.after_mark")


def main() -> None:
    os.umask(0o002)
    order = json.loads(sys.argv[1])
    try:
        merge(order)
        offline_copy.say({"ok": {}})
    except errors.Problem as problem:
        offline_copy.say({"error": problem.to_wire()})
    except (Exception, SystemExit) as fault:
        failed = errors.JobFailed(disk_id=order["image"], reason=f"{type(fault).__name__}: {fault}")
        offline_copy.say({"error": failed.to_wire()})
        raise


if __name__ == "__main__":
    main()
