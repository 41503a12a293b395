"""Builds the guest: a Debian cloud kernel as it comes, and an initramfs of busybox, five drivers and the writer.

python -m deploy.guest build          # prints the two files
python -m deploy.guest check ...      # see model.py
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
STATE = HERE.parents[1] / ".state"
AGENT = STATE / "guest-agent"
BUSYBOX = Path("/bin/busybox")
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "button", "evdev")
FOLDERS = ("bin", "dev", "proc", "sys", "modules")
# only where the guest shall have QEMU's guest agent
AGENT_MODULES = ("virtio_console", "brd")
AGENT_FOLDERS = ("run", "files", "lib", "lib64", "lib/x86_64-linux-gnu")
# what makes a kernel start faster where nothing is virtualised in hardware
QUICK = "console=ttyS0 quiet loglevel=0 panic=-1 mitigations=off nokaslr no_timer_check random.trust_cpu=on"


class NoParts(Exception):
    """Something that the guest is made of is not on this machine; the message says what, and `make setup` helps."""


@dataclass(frozen=True)
class Image:
    """What a VM that boots directly needs; give it `cmdline()` too."""

    kernel: Path
    initrd: Path


def cmdline(
    *,
    ring_mib: int = 64,
    batch: int = 16,
    rate_kib: int = 0,
    order: str = "scattered",
    check: bool = False,
    write: bool = True,
) -> str:
    """The kernel's command line.

    ring_mib: how much of each disk is written, round after round. batch: 4 KiB blocks between two flushes (at most
    1024). rate_kib: KiB a second for each disk, 0 as fast as it goes. order: scattered or sequential (a batch in
    order is one write: the fast way to fill a volume). check: read all back first. write=False: boot and sit still.
    """
    own = {"ring": ring_mib, "batch": batch, "rate": rate_kib, "order": order, "check": int(check), "write": int(write)}
    return " ".join([QUICK, *(f"drystone.{name}={value}" for name, value in own.items())])


def build(folder: Path = STATE / "guest", unpacked: Path = STATE / "kernel", agent: Path | None = None) -> Image:
    """Make the initramfs unless it is there and fits; `unpacked` is a linux-image package's content (make setup).
    `agent`: the unpacked package of QEMU's guest agent (AGENT), which then runs in the guest."""
    kernels = sorted(unpacked.glob("boot/vmlinuz-*"))
    if not kernels:
        raise NoParts(f"no kernel under {unpacked}/boot: run `make setup`")
    if not BUSYBOX.exists():
        raise NoParts("no /bin/busybox: install busybox-static (make setup)")
    folder.mkdir(parents=True, exist_ok=True)
    initrd = folder / f"initrd-{'agent-' if agent else ''}{_fingerprint(kernels[-1])}.img"
    if not initrd.exists():
        wanted = (*MODULES, *AGENT_MODULES) if agent else MODULES
        modules = list(_in_order(unpacked / "lib/modules" / kernels[-1].name.removeprefix("vmlinuz-"), wanted))
        more = _agent(agent / "usr/sbin/qemu-ga") if agent else ()
        content = b"".join([*_tree(_compile(folder), modules), *more, _entry("TRAILER!!!", 0, b"")])
        _store(initrd, content)
    return Image(kernels[-1], initrd)


def _fingerprint(kernel: Path) -> str:
    digest = hashlib.sha256()
    for source in (HERE / "writer.c", HERE / "init", Path(__file__)):
        digest.update(source.read_bytes())
    busybox = BUSYBOX.stat()
    digest.update(f"{kernel.name} {busybox.st_size} {busybox.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def _compile(folder: Path) -> bytes:
    """The writer, static, so that it needs nothing in the guest."""
    if not shutil.which("gcc"):
        raise NoParts("no gcc: install gcc and libc6-dev (make setup)")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        program = Path(place) / "writer"
        words = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-o"]
        subprocess.run([*words, str(program), str(HERE / "writer.c")], check=True, timeout=120)
        return program.read_bytes()


def _in_order(tree: Path, wanted: tuple[str, ...]) -> Iterator[Path]:
    """The modules and what they depend on, dependencies first; built-in ones have no file and are left out."""
    files = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    seen: set[str] = set()

    def visit(name: str) -> Iterator[Path]:
        if name in seen or name not in files:
            return
        seen.add(name)
        found = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for needed in found.group(1).decode().split(",") if found else []:
            yield from visit(needed.replace("-", "_"))
        yield files[name]

    for name in wanted:
        yield from visit(name)


def _tree(writer: bytes, modules: list[Path]) -> Iterator[bytes]:
    for folder in FOLDERS:
        yield _entry(folder, 0o040755, b"")
    yield _entry("bin/busybox", 0o100755, BUSYBOX.read_bytes())
    yield _entry("bin/sh", 0o120777, b"busybox")
    yield _entry("bin/writer", 0o100755, writer)
    yield _entry("init", 0o100755, (HERE / "init").read_bytes())
    for module in modules:
        yield _entry(f"modules/{module.name}", 0o100644, module.read_bytes())
    yield _entry("modules/order", 0o100644, "\n".join(module.name for module in modules).encode())


def _agent(program: Path) -> Iterator[bytes]:
    """The program and the libraries that it asks for, as this machine has them."""
    if not program.exists():
        raise NoParts(f"no {program}: run `make setup`")
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True, timeout=60).stdout
    for folder in AGENT_FOLDERS:
        yield _entry(folder, 0o040755, b"")
    yield _entry("bin/qemu-ga", 0o100755, program.read_bytes())
    for library in sorted(set(re.findall(r"(/lib\S+)", listed))):
        yield _entry(library.removeprefix("/"), 0o100755, Path(library).read_bytes())


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """One member of a cpio archive, format "newc" (the kernel's buffer-format documentation)."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + path
    return head.ljust(-(-len(head) // 4) * 4, b"\0") + content.ljust(-(-len(content) // 4) * 4, b"\0")


def _store(path: Path, content: bytes) -> None:
    """All or nothing, whoever else builds at the same time."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        draft.write(content)
    os.replace(draft.name, path)
