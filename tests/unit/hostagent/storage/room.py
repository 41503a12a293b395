"""What the storage tests speak of: ids by a word, a disk of a domain, qemu-img's own view."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from services.hostagent.storage import Storage

MiB = 2**20


class Ids:
    """Ids by a word, the same each time: `ids.v1`."""

    def __getattr__(self, word: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, word))


class Disk:
    """One image of a domain, and what a test does to it."""

    def __init__(self, storage: Storage, domain: dict[str, Any], image: str, ids: Ids) -> None:
        self.storage, self.domain, self.image, self.ids = storage, domain, image, ids
        self.folder = Path(domain["path"], domain["id"], "images", image)

    def chain(self, *words: str) -> list[str]:
        """Make volumes on top of each other, the first one is the base; returns their ids."""
        made: list[str] = []
        for word in words:
            volume = getattr(self.ids, word)
            self.storage.create_volume(self.domain, self.image, volume, made[-1] if made else None, 64 * MiB)
            made.append(volume)
        return made

    def wanted(self, volume: str, parent: str | None) -> dict[str, Any]:
        """The arguments of create_volume."""
        return {
            "domain": self.domain,
            "image": self.image,
            "volume": volume,
            "parent": parent,
            "capacity": 64 * MiB,
            "format": "cow",
            "description": "",
        }

    def view(self) -> dict[str, Any]:
        return self.storage.volumes(self.domain, self.image)

    @property
    def leaf(self) -> str | None:
        return self.view()["leaf"]

    def facts(self, volume: str) -> dict[str, Any]:
        return {v["volume_id"]: v for v in self.view()["volumes"]}[volume]

    def mark(self, volume: str, legality: str) -> None:
        self.storage.mark(self.domain, self.image, volume, legality)

    def discard(self, volume: str) -> None:
        self.storage.discard(self.domain, self.image, volume)

    def delete(self) -> None:
        self.storage.delete_image(self.domain, self.image)

    def rebase(self, volume: str, onto: str) -> None:
        """Rewrite a header's backing file name, as QEMU does at the end of a commit."""
        run("qemu-img", "rebase", "-u", "-b", onto, "-F", "qcow2", volume, cwd=self.folder)

    def commit(self, top: str) -> None:
        run("qemu-img", "commit", "-q", "-d", top, cwd=self.folder)

    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder)) if self.folder.exists() else []


def dropped(disk: Disk) -> tuple[str, str]:
    """A chain v1 <- v2 of which v2 is dropped."""
    v1, v2 = disk.chain("v1", "v2")
    disk.mark(v2, "illegal")
    return v1, v2


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=60).stdout


def qemu_chain(path: Path) -> list[dict[str, Any]]:
    """What qemu-img itself reads, the leaf first."""
    return json.loads(run("qemu-img", "info", "-U", "--backing-chain", "--output=json", str(path)))
