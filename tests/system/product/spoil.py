"""Bad input on purpose: full storages, foreign files, broken headers; and what a refusal must look like."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.errors import ApiError
from deploy.stack import wait
from deploy.stack.host import Host
from deploy.world import Machine, World
from tests.service.gateway import door
from tests.system.product import deaths

MIB = 2**20


# -- what was said ----------------------------------------------------------------------------------------


def refused(call: Callable[[], object], status: int, code: str, *words: object) -> ApiError:
    """The problem that the API answers; its sentence has all these words in it."""
    with pytest.raises(ApiError) as caught:
        call()
    fault = caught.value
    assert (fault.status, fault.code) == (status, code), fault.as_dict()
    for word in words:
        assert str(word) in str(fault), fault.as_dict()
    assert fault.hint, fault.as_dict()
    return fault


def command(world: World, *words: str) -> door.Ran:
    """The real `drystone` as a process of its own."""
    return door.run(*words, environ={"DRYSTONE_ADDRESS": world.stack.url, "DRYSTONE_TOKEN": world.stack.token})


def says(world: World, words: tuple[str, ...], code: int, begins: str, *inside: object) -> None:
    """The command ends with this code, and the last sentence but the hint is this one."""
    ran = command(world, *words)
    said = [line for line in ran.err.splitlines() if line.startswith("error:")]
    assert (ran.code, len(said)) == (code, 1), ran
    assert said[0].startswith(f"error: {begins}"), ran
    for word in inside:
        assert str(word) in said[0], ran
    assert "hint:" in ran.err, ran


def undone(machine: Machine, job: Any, code: str, *words: object) -> None:
    """The job was undone, and its reason says so."""
    ended = deaths.end_of(machine, job["id"], 60)
    assert (ended["state"], (ended["reason"] or {}).get("code")) == ("undone", code), ended
    for word in words:
        assert str(word) in ended["reason"]["message"], ended


# -- places -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Small:
    """A small file system that only the host has mounted, as it would an export."""

    host: Host
    path: Path

    @property
    def seen(self) -> Path:
        """The same from outside of the host."""
        return Path(f"/proc/{self.host.room.pid}/root{self.path}")

    @property
    def free(self) -> int:
        facts = os.statvfs(self.seen)
        return facts.f_bavail * facts.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Until so many bytes are free."""
        with (self.seen / ".ballast").open("ab") as ballast:
            left = self.free - leave
            with contextlib.suppress(OSError):
                os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, max(left, 1))

    def relieve(self) -> None:
        (self.seen / ".ballast").unlink(missing_ok=True)


@contextlib.contextmanager
def small_storage(world: World, name: str, mib: int) -> Iterator[Small]:
    """A tmpfs in the mount namespace of the first host."""
    host = next(iter(world.stack.hosts.values()))
    path = world.stack.folder / name
    path.mkdir()
    host.run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path)
    try:
        yield Small(host, path)
    finally:
        host.run("umount", "-l", path)


LOOP_SET_STATUS64, LOOP_GET_STATUS64 = 0x4C04, 0x4C05  # linux/loop.h; the structure has 232 bytes
FRONT = 64 * MIB  # of a sick storage: here lies what the file system itself needs


@dataclasses.dataclass
class Sick(Small):
    """A file system on a loop device, whose file lies on a tmpfs and grows as it is written."""

    below: Path = Path()

    def fill_below(self) -> None:
        """The file system has room, its disk has none: what was never written before meets ENOSPC."""
        with contextlib.suppress(OSError), (self._seen_below / "ballast").open("ab", buffering=0) as ballast:
            while ballast.write(b"\0" * MIB):
                pass

    def fail(self) -> None:
        """Everything behind the disk's front ends in EIO, reads too."""
        self._limit(FRONT)

    def mend(self) -> None:
        (self._seen_below / "ballast").unlink(missing_ok=True)
        self._limit(0)

    @property
    def _seen_below(self) -> Path:
        return Path(f"/proc/{self.host.room.pid}/root{self.below}")

    def _limit(self, size: int) -> None:
        """A loop device that ends early: the kernel answers all beyond with EIO. 0: as long as its file."""
        name = self.host.run("losetup", "-n", "-O", "NAME", "-j", self.below / "disk").strip()
        device, about = os.open(name, os.O_RDWR | os.O_CLOEXEC), bytearray(232)
        try:
            fcntl.ioctl(device, LOOP_GET_STATUS64, about)
            struct.pack_into("<Q", about, 32, size)  # lo_sizelimit
            fcntl.ioctl(device, LOOP_SET_STATUS64, bytes(about))
        finally:
            os.close(device)


@contextlib.contextmanager
def sick_storage(world: World, name: str, mib: int) -> Iterator[Sick]:
    """Mounted on the first host only. No journal: its writes would fail too, and nothing of a file system be left."""
    host = next(iter(world.stack.hosts.values()))
    path, below = world.stack.folder / name, world.stack.folder / f"{name}-below"
    path.mkdir()
    below.mkdir()
    host.run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", below)
    try:
        host.run("truncate", "-s", f"{4 * mib}M", below / "disk")
        host.run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", "-O", "^has_journal", below / "disk")
        # the loop device goes with the mount, whatever ends it
        host.run("mount", "-o", "loop,errors=continue", below / "disk", path)
        try:
            yield Sick(host, path, below)
        finally:
            host.run("umount", "-l", path)
    finally:
        host.run("umount", "-l", below)


def domain_on(world: World, name: str, path: Path) -> dict[str, Any]:
    center = world.api.clusters.get(world.cluster_id)["data_center_id"]
    return dict(world.api.storage_domains.create({"name": name, "data_center_id": center, "path": str(path)}))


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its size and first bytes: to compare before and after."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = (path.stat().st_size, file.read(4096))
    return found


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def wait_for_host_state(world: World, state: str, seconds: float = 30) -> None:
    host = next(iter(world.stack.hosts.values()))
    wait.until(f"host {state}", lambda: world.api.hosts.get(host.id)["state"] == state, seconds)


def machine_on(world: World, small: Small, domain_id: str, name: str, **options: Any) -> Machine:
    """A VM whose disk is on a small storage."""
    there = dataclasses.replace(world, domain_id=domain_id, machines=[])
    vm = there.machine(name, **options)
    vm.domain = small.seen / domain_id
    return vm


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Bring the folder's content back at the end, whatever was done to it."""
    copy = folder.parent.parent.parent / f"copy-of-{folder.name}"
    shutil.copytree(folder, copy)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        copy.rename(folder)


@contextlib.contextmanager
def renamed_backing(volume: Path, name: str) -> Iterator[None]:
    """Write another backing file name into a header that QEMU has open, where qemu-img is kept out."""
    with volume.open("r+b") as file:
        before = file.read(1024)
        offset, length = struct.unpack_from(">QI", before, 8)
        after = bytearray(before)
        after[offset : offset + len(name)] = name.encode()
        struct.pack_into(">I", after, 16, len(name))
        assert len(name) <= length
        file.seek(0)
        file.write(after)
    try:
        yield
    finally:
        with volume.open("r+b") as file:
            file.write(before)


@contextlib.contextmanager
def hung_storage(world: World, vm: Machine) -> Iterator[None]:
    """Every storage process that the agents have now stands still, as on a dead NFS server."""
    assert vm.api.chain(vm.disks[0])["facts"]  # a look, after which there is one to stop
    pids = [pid for host in world.stack.hosts.values() for pid in host.room.members()]
    children = [pid for pid in pids if b"services.hostagent.storage_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert children
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def runs_after_all(vm: Machine) -> None:
    """With its cause mended the same request works."""
    vm.api.start_vm(vm.id)
    vm.wait_for_state("running")
    vm.power_off()


# -- ways to break a chain; each answers what must be said of it ------------------------------------------


def outside(vm: Machine, volumes: list[Path]) -> str:
    outside = vm.domain.parent.parent / "outside.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", outside, 16 * MIB)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", outside, "-F", "qcow2", volumes[-1])
    return f"The volume {volumes[-1].name} has the backing file {outside}"


def missing(vm: Machine, volumes: list[Path]) -> str:
    volumes[0].rename(volumes[0].with_name("elsewhere"))
    return f"the backing file {volumes[0].name} of volume {volumes[1].name} is missing"


def garbage(vm: Machine, volumes: list[Path]) -> str:
    with volumes[0].open("r+b") as file:
        file.write(os.urandom(4096))
    return f"{volumes[0]}: its metadata says COW, it is no qcow2 file"


def marks(vm: Machine, volumes: list[Path]) -> str:
    meta = volumes[0].with_name(volumes[0].name + ".meta")
    meta.write_text(meta.read_text().replace("LEGALITY=LEGAL", "LEGALITY=ILLEGAL"))
    return f"volume {volumes[0].name} is marked illegal"
