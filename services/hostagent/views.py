"""One disk as QEMU and as libvirt show it, and the rule that says when they differ. Pure, but for path names.

Volumes are named by id where a file is one of the image's; a foreign file keeps its path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.hostagent import blockgraph
from services.hostagent.process import Process


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

    def works_on(self, base_id: str, top_id: str) -> bool:
        """Whether the job has exactly these ends."""
        job = self.job
        return job is not None and (self.id_of(job.base), self.id_of(job.top)) == (base_id, top_id)


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

    @property
    def up(self) -> bool:
        return self.state in ("running", "paused")


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
