"""Dirty bitmaps through an offline merge, on real qemu-img: none that could be used is lost, none counts less."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.hostagent import bitmaps, offline_writer
from tests.unit.hostagent.storage.room import run
from tests.unit.hostagent.storage.test_offline_writer import Written, die

MIB = 2**20


class Daemon:
    """QEMU's storage daemon with one volume open: it loads the bitmaps, as QEMU does."""

    def __init__(self, file: Path, *, writes: bool) -> None:
        words = ["qemu-storage-daemon", "--chardev", "stdio,id=c", "--monitor", "c"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()
        self.ask("qmp_capabilities")
        node = {
            "driver": "qcow2",
            "node-name": "n",
            "file": {"driver": "file", "filename": str(file)},
            "read-only": not writes,
        }
        self.ask("blockdev-add", **node)

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        while "event" in answer:
            answer = self._read()
        return answer["return"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        return dict(json.loads(self.process.stdout.readline()))

    def bitmaps(self) -> dict[str, dict[str, Any]]:
        (node,) = [one for one in self.ask("query-named-block-nodes", flat=True) if one["node-name"] == "n"]
        return {one["name"]: one for one in node.get("dirty-bitmaps", ())}

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=10)


@pytest.fixture
def written(storage, domain, ids) -> Written:
    return Written(storage, domain, ids.disk, ids)


def bitmap(written: Written, volume: str, name: str, *more: str) -> None:
    run("qemu-img", "bitmap", "--add", *more, "-f", "qcow2", str(written.folder / volume), name)


def write(written: Written, volume: str, at: int) -> None:
    run("qemu-io", "-c", f"write {at}M 1M", str(written.folder / volume))


def counted(written: Written, volume: str) -> dict[str, tuple[int, bool]]:
    """MiB that each bitmap counts, and whether it goes on."""
    daemon = Daemon(written.folder / volume, writes=False)
    found = daemon.bitmaps()
    daemon.kill()
    return {name: (one["count"] // MIB, one["recording"]) for name, one in found.items()}


@pytest.mark.parametrize("base", [0, 2])
def test_bitmaps_of_what_goes_are_in_base_afterwards_and_count_all(written, base):
    volumes = written.chain("v1", "v2", "v3", "v4")
    low, top = volumes[base], volumes[base + 1]
    bitmap(written, low, "both")
    bitmap(written, top, "both")
    write(written, low, 1)
    write(written, top, 20)
    bitmap(written, top, "later", "-g", str(MIB))
    bitmap(written, top, "asleep", "--disable")
    write(written, top, 30)
    order = written.order(volumes, base)
    offline_writer.merge(order)
    assert counted(written, low) == {"both": (3, True), "later": (1, True), "asleep": (0, False)}
    offline_writer.merge(order)  # asked again it finds the work done
    assert counted(written, low)["later"] == (1, True)


def test_bitmaps_of_a_range_are_gathered(written):
    volumes = written.chain("v1", "v2", "v3", "v4")
    for number, volume in enumerate(volumes[1:3], 1):
        bitmap(written, volume, "backup")
        write(written, volume, 10 * number)
    bitmap(written, volumes[1], "lower")
    offline_writer.merge(written.order(volumes, 0, 2))
    assert counted(written, volumes[0]) == {"backup": (2, True), "lower": (0, True)}


@pytest.mark.parametrize("where", [0, 1])
def test_one_that_a_dead_process_left_unusable_is_named_and_stops_nothing(written, where, capfd):
    volumes = written.chain("v1", "v2")
    for volume in volumes:
        bitmap(written, volume, "backup")
    daemon = Daemon(written.folder / volumes[where], writes=True)
    daemon.kill()
    assert bitmaps.STALE in bitmaps.read(str(written.folder / volumes[where]))["backup"]["flags"]
    before = written.reads()
    offline_writer.merge(written.order(volumes, 0))
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines() if '"lost"' in line]
    why = f"a process that died with volume {volumes[where]} open left it unusable"
    assert said == [{"lost": {"backup": why}}]
    assert written.reads() == before


def test_a_writer_that_died_after_its_copy_brings_them_when_it_is_asked_again(written):
    volumes = written.chain("v1", "v2")
    bitmap(written, volumes[1], "backup")
    write(written, volumes[1], 7)
    order = written.order(volumes, 0)
    die({**order, "agent": os.getpid()}, "offline.after_copy")
    offline_writer.merge(order)
    assert counted(written, volumes[0])["backup"][0] >= 1
