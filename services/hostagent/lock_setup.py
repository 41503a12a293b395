"""Whether this host is set up so that libvirt takes leases: sanlock, its plugin of libvirt, and both files.

Each fault names the file and the option, and what to write there. Whether the running libvirtd has read its file
shows only after a start: then the agent asks sanlock whether QEMU holds the lease (leasing.py).
"""

from __future__ import annotations

import glob
import re
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

ETC = Path("/etc/libvirt")
PLUGINS = ("/usr/lib/*/libvirt/lock-driver/sanlock.so", "/usr/lib*/libvirt/lock-driver/sanlock.so")
STATUS_SECONDS = 5.0
# made before sanlock starts, gone only when it ended well: deploy/systemd/sanlock.service.d/drystone.conf
MARKER = Path("/run/sanlock-unclean")
# option, value that it must have, value where it is not set
_OPTIONS = (("auto_disk_leases", "0", "1"), ("require_lease_for_disks", "0", "1"))
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


class Fault(NamedTuple):
    """Why, and what to do."""

    reason: str
    advice: str


def find_fault() -> Fault | None:
    """The first thing that is wrong on this host, None when nothing is. Takes some milliseconds."""
    return plugin_fault(PLUGINS) or files_fault(ETC) or daemon_fault(_status()) or guard_fault(MARKER)


def plugin_fault(patterns: tuple[str, ...]) -> Fault | None:
    if any(glob.glob(pattern) for pattern in patterns):
        return None
    return Fault("libvirt's plugin for sanlock (lock-driver/sanlock.so) is missing", "Install libvirt-sanlock there.")


def files_fault(etc: Path) -> Fault | None:
    path = etc / "qemu.conf"
    has = read_options(path).get("lock_manager")
    if has != "sanlock":
        what = "is not set" if has is None else f"is {has!r}"
        return Fault(f"lock_manager {what} in {path}", 'Write lock_manager = "sanlock" there and restart libvirtd.')
    path = etc / "qemu-sanlock.conf"
    options = read_options(path)
    for name, wanted, default in _OPTIONS:
        if options.get(name, default) != wanted:
            return Fault(f"{name} is not {wanted} in {path}", f"Write {name} = {wanted} there and restart libvirtd.")
    return None


def daemon_fault(status: str | None) -> Fault | None:
    """`status`: what `sanlock client status -D` prints, None when no daemon answers."""
    if status is None:
        return Fault("sanlock is not installed or does not run", "Install sanlock there and start it.")
    name = _name_in(status)
    if not _UUID.match(name) or name in _well_known():
        return Fault(
            f"sanlock's name for this host is {name!r}, not a UUID made for it alone",
            "Write our_host_name = <a fresh UUID> into /etc/sanlock/sanlock.conf, once for ever, and reboot.",
        )
    return None


def guard_fault(marker: Path) -> Fault | None:
    """A sanlock that is started again in one boot soon has its host id again, while QEMUs that it knows nothing of
    run on. What keeps it from that leaves a marker while it runs."""
    if marker.exists():
        return None
    return Fault(
        f"nothing keeps sanlock from being started twice in one boot: {marker} is missing while it runs",
        "Install deploy/systemd/sanlock.service.d/drystone.conf there and reboot.",
    )


def own_name() -> str:
    """The name under which this host's sanlock joins lockspaces; empty when it does not run."""
    return _name_in(_status() or "")


def _name_in(status: str) -> str:
    return dict(line.strip().partition("=")[::2] for line in status.splitlines() if "=" in line).get(
        "our_host_name", ""
    )


def read_options(path: Path) -> dict[str, str]:
    """The options of one of libvirt's files; of one that is missing, none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        name, sign, value = line.partition("=")
        if sign and not name.lstrip().startswith("#"):
            found[name.strip()] = value.partition("#")[0].strip().strip('"')
    return found


def _well_known() -> set[str]:
    """Names that a clone of this machine, or a second installation on it, would have too."""
    names = {socket.gethostname()}
    for path in ("/etc/machine-id", "/sys/class/dmi/id/product_uuid"):
        try:
            plain = Path(path).read_text(encoding="ascii").strip().lower().replace("-", "")
        except (OSError, ValueError):
            continue
        names.add("-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:])))
    return names


def _status() -> str | None:
    try:
        done = subprocess.run(
            ["sanlock", "client", "status", "-D"], capture_output=True, text=True, timeout=STATUS_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 and "our_host_name" in done.stdout else None
