"""File domains in memory, as all hosts of a test see them: volumes with parents, legality and sizes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
from dataclasses import dataclass, field
from typing import Any

from chassis import clock
from contracts import errors

Facts = dict[str, Any]
MIB = 2**20


@dataclass
class Volume:
    """`parent_id` is what `.meta` says, `backing_id` what the header says. `heir`: the base of a dropped range."""

    volume_id: str
    parent_id: str | None
    backing_id: str | None
    format: str
    capacity: int
    actual_size: int = 196_608
    legality: str = "legal"
    volume_type: str = "leaf"
    template_disk_id: str | None = None
    created_at: str = field(default_factory=lambda: clock.iso(dt.datetime.now(dt.UTC)))
    heir: str | None = None
    pulls: bool = True

    def facts(self) -> Facts:
        shown = dataclasses.asdict(self)
        shown.pop("heir")
        return shown


@dataclass
class Domain:
    id: str
    name: str
    path: str
    data_center_id: str | None
    version: int = 5
    total: int = 100 * 1024 * MIB
    free: int = 50 * 1024 * MIB

    def facts(self) -> Facts:
        shown = dataclasses.asdict(self)
        shown.pop("path")
        return shown


@dataclass
class Image:
    """One disk: its volumes by id, and the host whose QEMU holds its lock."""

    domain_id: str
    volumes: dict[str, Volume] = field(default_factory=dict)
    locked_by: str | None = None


class Storage:
    """What several fake agents share. `unusable`: paths that are no good directory. `copy_bytes`: what a copy of a
    disk has to write, `copy_rate` of it between two asks (0: it stands still); `copies`: how far each one is.
    `leases`: by VM the number of the host that holds its lease, None where it is free."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.domains: dict[str, Domain] = {}
        self.images: dict[str, Image] = {}
        self.unusable: set[str] = set()
        self.copy_bytes = self.copy_rate = 64 * MIB
        self.copies: dict[str, int] = {}
        self.leases: dict[str, int | None] = {}

    # -- domains ------------------------------------------------------------------------------------------

    def create_domain(self, ask: Facts) -> Facts:
        domain_id, path = ask["domain"]["id"], ask["domain"]["path"]
        if path in self.unusable:
            raise errors.DomainUnusable(path=path, reason="it is not a directory", advice="Make it first.")
        known = self.domains.setdefault(domain_id, Domain(domain_id, ask["name"], path, ask["data_center_id"]))
        return known.facts()

    def domain(self, ref: Facts) -> Domain:
        known = self.domains.get(ref["id"])
        if known is None or known.path != ref["path"] or known.path in self.unusable:
            raise errors.DomainUnusable(path=ref["path"], reason="no domain of that id lies there", advice="")
        return known

    def delete_domain(self, ref: Facts) -> Facts:
        if ref["id"] in self.domains:
            self.domain(ref)
            used = [disk_id for disk_id, image in self.images.items() if image.domain_id == ref["id"]]
            if used:
                raise errors.StillInUse(kind="domain", id=ref["id"], by=", ".join(used))
            del self.domains[ref["id"]]
        return {}

    def scan(self, ref: Facts) -> Facts:
        domain = self.domain(ref)
        rows = [
            {
                **volume.facts(),
                "disk_id": disk_id,
                "path": self.path(domain, disk_id, volume.volume_id),
                "problem": None,
            }
            for disk_id, image in self.images.items()
            if image.domain_id == domain.id
            for volume in image.volumes.values()
        ]
        return {"volumes": rows, "foreign": []}

    @staticmethod
    def path(domain: Domain, disk_id: str, volume_id: str) -> str:
        return f"{domain.path}/{domain.id}/images/{disk_id}/{volume_id}"

    # -- volumes ------------------------------------------------------------------------------------------

    def create_volume(self, ask: Facts) -> Facts:
        domain = self.domain(ask["disk"]["domain"])
        if ask["capacity"] > domain.free:
            raise errors.NoSpace(action="a volume", needs=ask["capacity"], domain_id=domain.id, has=domain.free)
        image = self.images.setdefault(ask["disk"]["disk_id"], Image(domain.id))
        parent = ask["parent_id"]
        if parent is not None:
            self.volume(ask["disk"]["disk_id"], parent).volume_type = "internal"
        made = Volume(ask["volume_id"], parent, parent, ask["format"], ask["capacity"])
        return image.volumes.setdefault(ask["volume_id"], made).facts()

    # -- templates ----------------------------------------------------------------------------------------

    def copy_disk(self, ask: Facts) -> Facts:
        source, disk_id, volume_id = ask["source"]["disk_id"], ask["disk"]["disk_id"], ask["volume_id"]
        domain = self.domain(ask["disk"]["domain"])
        leaf = self.volume(source, str(self.leaf(source)))
        if volume_id not in self.images.get(disk_id, Image(domain.id)).volumes:
            if self.image(source).locked_by:
                raise errors.VolumeInUse(volume_id=leaf.volume_id, by=f"QEMU on {self.image(source).locked_by}")
            if self.copy_bytes > domain.free:
                raise errors.NoSpace(action="copying", needs=self.copy_bytes, domain_id=domain.id, has=domain.free)
            copied = self.copies[disk_id] = self.copies.get(disk_id, 0) + self.copy_rate
            if copied < self.copy_bytes:
                return {"state": "copying", "copied": copied, "total": self.copy_bytes}
            made = Volume(volume_id, None, None, "cow", leaf.capacity)
            if ask["shared"]:
                made.volume_type, made.template_disk_id = "shared", disk_id
            self.images.setdefault(disk_id, Image(domain.id)).volumes[volume_id] = made
        return {"state": "done", "copied": self.copy_bytes, "total": self.copy_bytes}

    def create_thin_disk(self, ask: Facts) -> Facts:
        domain, disk_id, volume_id = self.domain(ask["disk"]["domain"]), ask["disk"]["disk_id"], ask["volume_id"]
        base = self.volume(ask["template_disk_id"], ask["template_volume_id"])
        if base.volume_type != "shared":
            raise errors.ChainDiffers(disk_id=ask["template_disk_id"], reason=f"{base.volume_id} is no template's")
        image = self.images.setdefault(disk_id, Image(domain.id))
        image.volumes[base.volume_id] = base  # a hard link
        made = Volume(volume_id, base.volume_id, base.volume_id, "cow", base.capacity)
        return image.volumes.setdefault(volume_id, made).facts()

    def _refuse_needed(self, disk_id: str) -> None:
        """A template's disk stays while another image has its volume."""
        for other, image in self.images.items():
            for volume in image.volumes.values():
                if volume.template_disk_id == disk_id and other != disk_id:
                    raise errors.VolumeInUse(
                        volume_id=volume.volume_id, by=f"volume {volume.volume_id} of disk {other}"
                    )

    def image(self, disk_id: str) -> Image:
        if disk_id not in self.images:
            raise errors.NotFound(kind="disk", id=disk_id)
        return self.images[disk_id]

    def volume(self, disk_id: str, volume_id: str) -> Volume:
        found = self.image(disk_id).volumes.get(volume_id)
        if found is None:
            raise errors.NotFound(kind="volume", id=volume_id)
        return found

    def delete_disk(self, disk: Facts) -> Facts:
        self.domain(disk["domain"])
        image = self.images.get(disk["disk_id"])
        if image is not None and image.locked_by:
            raise errors.VolumeInUse(volume_id=self.leaf(disk["disk_id"]), by=f"QEMU on {image.locked_by}")
        self._refuse_needed(disk["disk_id"])
        self.copies.pop(disk["disk_id"], None)
        self.images.pop(disk["disk_id"], None)
        return {}

    def delete_volume(self, disk_id: str, volume_id: str) -> None:
        volumes = self.image(disk_id).volumes
        users = [one.volume_id for one in volumes.values() if volume_id in (one.parent_id, one.backing_id)]
        users = [user for user in users if volumes[user].legality == "legal"]
        if volume_id in volumes and users:
            raise errors.VolumeInUse(volume_id=volume_id, by=", ".join(users))
        volumes.pop(volume_id, None)

    def leaf(self, disk_id: str) -> str | None:
        """The one legal volume that no legal volume stands on; None when there are several or none. What lies between
        a dropped top and its heir does not count."""
        volumes = self.image(disk_id).volumes
        passed: set[str | None] = set()
        for one in volumes.values():
            at = one.parent_id if one.heir else None
            while at is not None and at != one.heir:
                passed.add(at)
                at = volumes[at].parent_id
        legal = [one for one in volumes.values() if one.legality == "legal" and one.volume_id not in passed]
        below = {id_ for one in legal for id_ in (one.parent_id, one.backing_id)}
        tops = [one.volume_id for one in legal if one.volume_id not in below]
        return tops[0] if len(tops) == 1 else None

    def chain(self, disk_id: str) -> list[str]:
        """Volume ids, leaf first, as the headers name them."""
        found: list[str] = []
        at = self.leaf(disk_id)
        while at is not None:
            found.append(at)
            at = self.image(disk_id).volumes[at].backing_id
        return found

    def view(self, disk: Facts) -> Facts:
        """The contract's StorageView."""
        domain, image = self.domain(disk["domain"]), self.image(disk["disk_id"])
        leaf = self.leaf(disk["disk_id"])
        volumes = [volume.facts() for volume in image.volumes.values()]
        problem = None if leaf else "it has no single leaf"
        return {"volumes": volumes, "leaf": leaf, "problem": problem, "free": domain.free}
