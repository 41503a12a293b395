"""One disk as QEMU and as libvirt show it, and the rule that says when they differ. Pure, but for path names.

Volumes are named by id where a file is one of the image's; a foreign file keeps its path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from contracts import errors
from services.hostagent import blockgraph
from services.hostagent.process import Process

PULL = 1  # VIR_DOMAIN_BLOCK_JOB_TYPE_PULL
ACTIVE_COMMIT = 4  # VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT


class Ends(NamedTuple):
    """Of a merge: base, top, and the child above it (None: top is active). `pull`: base goes up into top."""

    base: str
    top: str
    child: str | None = None
    pull: bool = False

    @property
    def gone(self) -> str:
        """The end that leaves the chain."""
        return self.base if self.pull else self.top

    @property
    def stays(self) -> str:
        return self.top if self.pull else self.base

    def done(self, ids: Sequence[str | None]) -> bool:
        """Whether a chain is as it is after the job."""
        return self.gone not in ids and self.stays in ids


def ends_of(request: dict[str, Any]) -> Ends:
    """Of a contracts.hostagent.MergeAsk, of `pull`'s, or of what was kept of one."""
    return Ends(request["base_id"], request["top_id"], request.get("child_id"), bool(request.get("pull")))


def pull(request: dict[str, Any]) -> dict[str, Any]:
    """A contracts.hostagent.PullAsk in the words of a merge."""
    return {**request, "pull": True}


@dataclass(frozen=True)
class Qemu:
    """`state`: absent, running, paused, unreachable. `ids`: volume ids, leaf first, None for foreign files."""

    state: str
    process: Process | None = None
    status: str = ""
    layers: tuple[blockgraph.Layer, ...] = ()
    ids: tuple[str | None, ...] = ()
    job: blockgraph.Job | None = None
    blocks: blockgraph.Blocks | None = None

    @property
    def alive(self) -> bool:
        return self.state != "absent"

    @property
    def leaf(self) -> str | None:
        return self.ids[0] if self.ids else None

    def id_of(self, node: str | None) -> str | None:
        """The volume whose format node this is."""
        return next((id_ for layer, id_ in zip(self.layers, self.ids, strict=True) if layer.node == node), None)

    def above(self, volume_id: str | None) -> str | None:
        """The volume that stands on this one; None for the leaf, and for one that is not in the chain."""
        at = self.ids.index(volume_id) if volume_id is not None and volume_id in self.ids else 0
        return self.ids[at - 1] if at else None

    def refuse_beside(self, disk_id: str, *, pull: bool = False) -> None:
        """libvirt asks QEMU for all its nodes around commits and snapshots, and a pull that just ends does not bear it
        (nodefiles.py): nothing is begun on any disk beside a pull, and a pull beside nothing. Raises DiskBusy."""
        working = self.blocks.working if self.blocks else ()
        found = next((job for job in working if job != self.job and (pull or job.type == "pull")), None)
        if found is not None:
            raise errors.DiskBusy(disk_id=disk_id, flow_id=f"job {found.id} on another disk of the VM")

    def works_on(self, ends: Ends) -> bool:
        """Whether the job is a commit, or a pull, with exactly these ends: a foreign one over more layers, or an active
        one in the place of an internal one, is not."""
        job = self.job
        if job is None or job.type != ("pull" if ends.pull else "commit"):
            return False
        if job.active is not (ends.child is None and not ends.pull):
            return False
        top = self.id_of(job.top)
        return (self.id_of(job.base), top, self.above(top)) == ends[:3]


@dataclass(frozen=True)
class Libvirt:
    """`state`: absent, running, paused, shutoff, away. `target`: the disk's name there; `paths` as it spells them.
    `job`: its statistics (type, bandwidth, cur, end), {} for none, None when it did not tell."""

    state: str
    target: str = ""
    paths: tuple[str, ...] = ()
    ids: tuple[str | None, ...] = ()
    mirror: bool = False
    mirror_ready: bool = False
    job: dict[str, Any] | None = None
    agent: bool = False
    mirror_id: str | None = None

    @property
    def up(self) -> bool:
        return self.state in ("running", "paused")

    def denies(self, ends: Ends) -> bool:
        """Whether its XML or its job say that a job is none with these ends. Only an active one has a mirror, and that
        is base; what is not there yet (the XML follows QEMU) denies nothing."""
        kind = (self.job or {}).get("type")
        if ends.pull:
            return self.mirror or kind not in (None, PULL)
        if ends.child is None:
            return self.mirror and self.mirror_id != ends.base
        return self.mirror or kind in (PULL, ACTIVE_COMMIT)


def difference(qemu: Qemu, libvirt: Libvirt) -> str | None:
    """How QEMU and libvirt differ about one disk, in words; None when they agree."""
    about_life = life_difference(qemu.state, libvirt.state)
    if about_life or not qemu.alive:
        return about_life
    if _keys(qemu.ids, tuple(layer.path for layer in qemu.layers)) != _keys(libvirt.ids, libvirt.paths):
        return f"QEMU's chain is {_words(qemu.ids)}, libvirt's is {_words(libvirt.ids)}"
    if libvirt.mirror and qemu.job is None:
        return "libvirt shows a mirror, QEMU has no job"
    if qemu.job is not None and libvirt.job == {} and not libvirt.mirror:
        return f"QEMU works on job {qemu.job.id}, which libvirt does not know"
    return None


def life_difference(qemu: str, libvirt: str) -> str | None:
    """How they differ about the VM as a whole. 'not found' or 'shut off' in libvirt never means stopped."""
    if qemu == "absent":
        return f"libvirt says {libvirt}, but no QEMU process lives" if libvirt in ("running", "paused") else None
    if qemu == "unreachable":
        return "a QEMU process lives, but its monitor does not answer"
    if libvirt in ("absent", "shutoff"):
        return f"QEMU is {qemu}, but libvirt has lost the VM ({libvirt})"
    return f"QEMU is {qemu}, libvirt does not answer" if libvirt == "away" else None


def _keys(ids: tuple[str | None, ...], paths: tuple[str, ...]) -> list[str]:
    return [id_ or path for id_, path in zip(ids, paths, strict=True)]


def _words(ids: tuple[str | None, ...]) -> str:
    return " > ".join(id_ or "a foreign file" for id_ in ids) or "empty"


Name = Callable[[str], str | None]  # a path to the volume's id


def qemu_facts(qemu: Qemu) -> dict[str, Any]:
    """contracts.hostagent.QemuView."""
    job = qemu.job
    return {
        "state": qemu.state,
        "pid": qemu.process.pid if qemu.process else None,
        "chain": list(qemu.ids),
        "paths": [layer.path for layer in qemu.layers],
        "job": job
        and {
            "type": job.type,
            "status": job.status,
            "ready": job.ready,
            "cur": job.cur,
            "end": job.end,
            "speed": job.speed,
            "base_id": qemu.id_of(job.base),
            "top_id": qemu.id_of(job.top),
            "child_id": qemu.above(qemu.id_of(job.top)),
        },
    }


def libvirt_facts(libvirt: Libvirt) -> dict[str, Any]:
    """contracts.hostagent.LibvirtView."""
    job = libvirt.job
    return {
        "state": libvirt.state,
        "chain": list(libvirt.ids),
        "mirror": libvirt.mirror,
        "mirror_ready": libvirt.mirror_ready,
        "job": {
            "type": "commit",
            "status": "ready" if libvirt.mirror_ready else "running",
            "ready": libvirt.mirror_ready,
            "cur": int(job["cur"]),
            "end": int(job["end"]),
            "speed": int(job["bandwidth"]),
        }
        if job
        else None,
    }
