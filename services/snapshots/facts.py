"""What an agent saw of one disk, as frozen values; believe QEMU first, then the storage, then libvirt.

Made from `hostagent.DiskFacts` (contracts/hostagent.py). Ids are volume ids; chains are leaf first, as on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contracts import errors


@dataclass(frozen=True)
class Job:
    """A block job. `cur`, `end` in bytes, `speed` in bytes per second; ends are None where the source is silent."""

    type: str
    status: str
    ready: bool
    cur: int
    end: int
    speed: int = 0
    base_id: str | None = None
    top_id: str | None = None
    child_id: str | None = None

    @property
    def left(self) -> int:
        return max(0, self.end - self.cur)

    @property
    def offline(self) -> bool:
        """Of a VM that is down."""
        return self.type in ("offline", "offline_pull")

    @property
    def pulls(self) -> bool:
        """Base goes up into top."""
        return self.type in ("pull", "offline_pull")

    def named(self) -> str:
        return f"{self.type} of {self.top_id or 'unknown'} into {self.base_id or 'unknown'}"


@dataclass(frozen=True)
class Volume:
    """One volume on the storage. `parent_id` is what `.meta` says, `backing_id` what the qcow2 header says, by the name
    `backing`. `pulls`: a pull may move what it holds, or end in it."""

    volume_id: str
    parent_id: str | None
    backing_id: str | None
    format: str
    capacity: int
    actual_size: int
    legality: str
    volume_type: str
    backing: str | None = None
    template_disk_id: str | None = None
    created_at: str | None = None
    pulls: bool = False


@dataclass(frozen=True)
class Qemu:
    state: str
    chain: tuple[str | None, ...]
    paths: tuple[str, ...]
    job: Job | None

    @property
    def alive(self) -> bool:
        return self.state in ("running", "paused")

    @property
    def leaf(self) -> str | None:
        """What QEMU writes to."""
        return self.chain[0] if self.chain else None


@dataclass(frozen=True)
class Libvirt:
    state: str
    chain: tuple[str | None, ...]
    mirror: bool
    mirror_ready: bool
    job: Job | None


@dataclass(frozen=True)
class Storage:
    """`leaf`: the one volume that holds every acknowledged write, None with a `problem`, which may be told as the
    error `trouble` too. `free` in bytes. `templates`: volumes of a template's disk that this one stands on; they are no
    part of it, and are left out everywhere else."""

    volumes: Mapping[str, Volume]
    leaf: str | None
    problem: str | None
    free: int
    trouble: errors.Problem | None = None
    templates: Mapping[str, Volume] = field(default_factory=dict)

    def chain(self) -> tuple[str, ...]:
        """The chain by qcow2 headers, first volume first; what is missing or runs in a circle ends it."""
        return self.below(self.leaf)

    def below(self, volume_id: str | None) -> tuple[str, ...]:
        """The same from any volume down to the first, first volume first."""
        found: list[str] = []
        here = volume_id
        while here is not None and here in self.volumes and here not in found:
            found.append(here)
            here = self.volumes[here].backing_id
        return tuple(reversed(found))

    def size(self, volume_id: str) -> int:
        """Bytes that a volume takes; 0 when it is not there."""
        volume = self.volumes.get(volume_id)
        return volume.actual_size if volume else 0


@dataclass(frozen=True)
class DiskFacts:
    vm_id: str | None
    disk_id: str
    qemu: Qemu
    libvirt: Libvirt
    storage: Storage
    unsure: str | None
    paused_by_pivot: bool
    offline: Job | None = None  # the agent's own merge of a VM that is down

    @property
    def job(self) -> Job | None:
        """What copies, QEMU or the agent."""
        return self.qemu.job or self.offline

    @property
    def unknown(self) -> str | None:
        """Why nothing may be concluded from this look, or None."""
        if self.qemu.state == "unreachable":
            return "a QEMU process lives, but its monitor does not answer"
        return None if self.unsure is None else self.unsure or "QEMU and libvirt differ"


def read(told: Mapping[str, Any]) -> DiskFacts:
    """The frozen form of a loaded `hostagent.DiskFacts`."""
    qemu, libvirt, storage = told["qemu"], told["libvirt"], told["storage"]
    volumes = {row["volume_id"]: _volume(row) for row in storage["volumes"]}
    owners = {id_: volume.template_disk_id for id_, volume in volumes.items() if volume.volume_type == "shared"}
    templates = {id_: volumes.pop(id_) for id_, owner in owners.items() if owner not in (None, told["disk_id"])}
    mine = [at for at, id_ in enumerate(qemu["chain"]) if id_ not in templates]
    return DiskFacts(
        vm_id=told["vm_id"],
        disk_id=told["disk_id"],
        qemu=Qemu(
            qemu["state"],
            tuple(qemu["chain"][at] for at in mine),
            tuple(qemu["paths"][at] for at in mine if at < len(qemu["paths"])),
            _job(qemu["job"]),
        ),
        libvirt=Libvirt(
            libvirt["state"],
            tuple(id_ for id_ in libvirt["chain"] if id_ not in templates),
            libvirt["mirror"],
            libvirt["mirror_ready"],
            _job(libvirt["job"]),
        ),
        storage=Storage(
            volumes,
            storage["leaf"],
            storage["problem"],
            storage["free"],
            _trouble(storage.get("trouble")),
            templates,
        ),
        unsure=told["unsure"],
        paused_by_pivot=told["paused_by_pivot"],
        offline=_job(told.get("offline")),
    )


def _trouble(told: Mapping[str, Any] | None) -> errors.Problem | None:
    """Only what the promises of this service declare."""
    problem = errors.from_wire(dict(told)) if told else None
    return problem if isinstance(problem, (errors.ChainBroken, errors.BackingOutside)) else None


def _job(told: Mapping[str, Any] | None) -> Job | None:
    if told is None:
        return None
    numbers = (told["cur"], told["end"], told["speed"])
    ends = (told.get("base_id"), told.get("top_id"), told.get("child_id"))
    return Job(told["type"], told["status"], told["ready"], *numbers, *ends)


def _volume(told: Mapping[str, Any]) -> Volume:
    return Volume(
        told["volume_id"],
        told["parent_id"],
        told["backing_id"],
        told["format"],
        told["capacity"],
        told["actual_size"],
        told["legality"],
        told["volume_type"],
        told.get("backing"),
        told.get("template_disk_id"),
        told["created_at"],
        told.get("pulls", False),
    )
