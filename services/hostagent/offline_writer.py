"""What writes when a snapshot of a VM that is down is merged: a process that holds the VM's lease for all of it.

    put back what was not recorded -> look at the chain and at everybody else's references -> qemu-img commit
    -> dirty bitmaps -> sync base -> the child's header := base, synced and read back -> the record (top's mark first)

Until the mark of top the chain of before holds everything: reading through top, or through what lies between, gives the
same whatever was copied into base. So a death at any point costs the copy and nothing else, and the next one begins
from what the storage shows; no success of qemu-img's is remembered anywhere.

qemu-img inherits sanlock's connection: the lease is free only when both have ended. It dies with this process, and
this process with the agent, or with a sanlock that has hung up: nobody renews the lease then.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    process,
    sanlocks,
    scan,
    under_lease,
    volume,
)

LOOK = 0.2  # seconds between two looks whether the agent still lives
TELL = 0.5  # seconds between two lines of progress
LOCK_SECONDS = 10.0  # a QEMU that was just being started has the files open until libvirt sees that the lease is ours
POLITE = ("ionice", "-c", "2", "-n", "7", "nice", "-n", "10")  # guests and other hosts come first
_PERCENT = re.compile(rb"\(\s*([0-9.]+)/100%\)")
_SPACE = ("No space left on device", "Disk quota exceeded")
_PR_SET_PDEATHSIG = 1
_QEMU_FORMAT = {"cow": "qcow2", "raw": "raw"}
_prctl = ctypes.CDLL(None, use_errno=True).prctl

Order = dict[
    str, Any
]  # vm, space and offset of its lease, domain, image, base, top, child, between, bandwidth, agent (its pid)
Volumes = dict[str, chain.Volume]
Told = TypeVar("Told")


def merge(order: Order) -> None:
    """Raises what contracts.hostagent.merge_offline declares; then the chain of before counts."""
    place, image = domain.opened(order["domain"]), order["image"]
    base, top, child, between = order["base"], order["top"], order["child"], order["between"]
    if process.find(order["vm"]) is not None:  # it came up before the lease was ours; paused, it holds none
        raise errors.VmWrongState(vm_id=order["vm"], state="running", action="an offline merge", needs="down")
    _refuse_dropped(order)
    merging.put_back(order["domain"], image)
    with files.guard("merge_offline", place.image(image), place.id), files.image_lock(place, image):
        volumes = {v.id: v for v in volume.read_image(place, image)}
        if not is_done(volumes, base, top, child):
            refuse_other(image, volumes, child, [top, *between, base])
            _refuse_shared(place, image, child, [top, *between, base])
            crash.point("offline.before_copy")
            _unlocked(lambda: _copy(place, order, volumes))
            crash.point("offline.after_copy")
            if lost := bitmaps.carry(place, image, [top, *between], base):
                _say({"lost": lost})
            files.sync(place.file(image, base))
            _switch(place, order, volumes[base])
        record = {"image": image, "base": base, "top": top, "child": child, "between": between}
        merging.record_merge(order["domain"], **record, concluded=True)
        crash.point("offline.after_record")


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


# -- the copy ---------------------------------------------------------------------------------------------


def _copy(place: layout.Place, order: Order, volumes: Volumes) -> None:
    top, base = volumes[order["top"]], volumes[order["base"]]
    end = sum(volumes[one].actual_size for one in (order["top"], *order["between"]))
    needs = max(0, min(end, max(top.capacity, base.capacity) - base.actual_size))
    has = files.free(place.images)[1]
    if needs > has:
        raise errors.NoSpace(action="merging", domain_id=place.id, needs=needs, has=has)
    words = ["qemu-img", "commit", "-p", "-d", "-f", _QEMU_FORMAT[top.format], "-b", base.id]
    if order["bandwidth"]:
        words += ["-r", str(order["bandwidth"])]
    lease = under_lease.connection()
    with subprocess.Popen(
        [*POLITE, *words, top.id],
        cwd=place.image(order["image"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=() if lease is None else (lease,),
        preexec_fn=_die_with_us,  # noqa: PLW1509 - this process has one thread
    ) as running:
        said = _follow(running, order["agent"], lease, end)
    if running.returncode != 0:
        raise _failed(place, order, said or f"qemu-img ended with {running.returncode}", needs)


def _follow(running: subprocess.Popen[bytes], agent: int, lease: int | None, end: int) -> str:
    """Tell how far it is, until it ends; what it complained of. It ends too when nobody listens, the agent being gone,
    and when nobody renews the lease, sanlock being gone."""
    assert running.stdout is not None  # noqa: S101  for mypy
    assert running.stderr is not None  # noqa: S101
    outputs, said, progress = {running.stdout.fileno(), running.stderr.fileno()}, b"", Progress(end)
    while outputs:
        for descriptor in select.select(list(outputs), [], [], LOOK)[0]:
            part = os.read(descriptor, 4096)
            if not part:
                outputs.discard(descriptor)
            elif descriptor == running.stderr.fileno():
                said = (said + part)[-2000:]
            else:
                progress.take(part)
        progress.tell()
        if os.getppid() != agent or _hung_up(lease):
            running.kill()
            raise SystemExit("the agent is gone" if os.getppid() != agent else "sanlock is gone")
    running.wait()
    return said.decode("utf-8", "replace").strip()


@dataclass
class Progress:
    """Of what qemu-img prints the last is told, a little later where it comes too soon: with a limit it moves by 16 MiB
    at once and is silent for long after that."""

    end: int  # bytes
    percent: float = -1.0
    told: float = -1.0
    when: float = 0.0

    def take(self, printed: bytes) -> None:
        found = _PERCENT.findall(printed)
        self.percent = float(found[-1]) if found else self.percent

    def tell(self) -> None:
        if self.percent != self.told and time.monotonic() - self.when > TELL:
            self.told, self.when = self.percent, time.monotonic()
            _say({"cur": int(self.end * self.percent / 100), "end": self.end})


def _hung_up(lease: int | None) -> bool:
    """sanlock says nothing on this connection by itself: what can be read there is its end."""
    return lease is not None and bool(select.select([lease], [], [], 0)[0])


def _failed(place: layout.Place, order: Order, said: str, needs: int) -> errors.Problem:
    if any(words in said for words in _SPACE):
        has = files.free(place.images)[1]
        return errors.NoSpace(action="merging", domain_id=place.id, needs=needs, has=has)
    if "lock" in said and "Failed to get" in said:
        return errors.VolumeInUse(volume_id=order["top"], by="a process that has it open (QEMU's image lock)")
    return errors.JobFailed(disk_id=order["image"], reason=f"qemu-img: {said[:500]}")


def _die_with_us() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    os.umask(0o002)
    order = json.loads(sys.argv[1])
    try:
        merge(order)
        _say({"ok": {}})
    except errors.Problem as problem:
        _say({"error": problem.to_wire()})
    except (Exception, SystemExit) as fault:
        _say({"error": errors.JobFailed(disk_id=order["image"], reason=f"{type(fault).__name__}: {fault}").to_wire()})
        raise


if __name__ == "__main__":
    main()
