"""A disk that holds something, for the writer of offline merges; and how that writer dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.unit.hostagent.storage.room import Disk, qemu_chain, run


class Written(Disk):
    """A chain of four whose volumes each hold something of their own, over each other."""

    def write(self) -> list[str]:
        volumes = self.chain("v1", "v2", "v3", "v4")
        for number, volume in enumerate(volumes, 1):
            spans = ((0, 2), (4 * number, 4), (40, number))
            words = [word for at, size in spans for word in ("-c", f"write -P {number} {at}M {size}M")]
            run("qemu-io", *words, str(self.folder / volume))
        return volumes

    def reads(self) -> str:
        """What a guest would read: a digest."""
        raw = self.folder.parent / "raw"
        run("qemu-img", "convert", "-O", "raw", str(self.folder / str(self.leaf)), str(raw))
        run("truncate", "-s", "128M", str(raw))  # an image that grew reads zeros there
        return run("sha256sum", str(raw)).split()[0]

    def order(self, volumes: list[str], base: int, layers: int = 1, *, pull: bool = False) -> dict:
        top = base + layers
        ends = {"base": volumes[base], "top": volumes[top], "between": volumes[base + 1 : top][::-1], "pull": pull}
        child = volumes[top + 1] if top + 1 < len(volumes) else None
        ends["below"] = volumes[base - 1] if pull and base else None
        known = {
            "vm": self.ids.vm,
            "space": self.domain,
            "domain": self.domain,
            "image": self.image,
            "bandwidth": 0,
            "offset": None,
        }
        return {**known, **ends, "child": child, "agent": os.getppid()}

    def chain_ids(self) -> list[str]:
        return [Path(one["filename"]).name for one in qemu_chain(self.folder / str(self.leaf))]

    def meta(self, volume: str) -> str:
        return (self.folder / f"{volume}.meta").read_text()


def die(order: dict, point: str) -> None:
    order = {**order, "agent": os.getpid()}
    done = subprocess.run(
        [sys.executable, "-m", "services.hostagent.offline_writer", json.dumps(order)],
        env={**os.environ, "DRYSTONE_CRASH": point},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done
