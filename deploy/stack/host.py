"""A namespace host: its own libvirtd, sanlock, /proc, hostname and libvirt folders, at the machine's native speed.

What it lacks is a kernel and a watchdog of its own. Ending it is a power cut: libvirtd, QEMU and agent die at once.
QEMU runs as root and opens files itself; there is no virtlogd (`stdio_handler = "file"`), no cgroup and no network.
"""

import itertools
import os
import signal
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.stack import proc, wait
from deploy.stack.room import Command, Room, RoomGone, Running
from services.hostagent.lock_setup import MARKER

CONTROL = Path(__file__).with_name("libvirtd-control")
PRIVATE = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "qemu-log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
MEMORY = ("/run/libvirt", "/run/sanlock")  # in memory as on a real host: libvirt syncs a status file at every change
QEMU_CONF = """\
# root, or disks in a private folder are refused
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
# two hosts of one machine would share one cgroup and one /dev
cgroup_controllers = []
namespaces = []
# QEMU writes its log and its serial files itself: virtlogd would cut them at 2 MiB
stdio_handler = "file"
# every VM that has a lease takes it at every start and resume
lock_manager = "sanlock"
"""
SANLOCK_CONF = """\
# leases are named by each VM; none are made up from disk paths, and VMs without one may start
auto_disk_leases = 0
require_lease_for_disks = 0
"""
# Not for production: no watchdog (-w 0), no locked memory, no real-time priority (-l 0 -h 0): a namespace has none.
# A host whose sanlock dies would go on writing here; on a real host the watchdog resets it.
SANLOCK = ("sanlock", "daemon", "-D", "-w", "0", "-h", "0", "-l", "0", "-U", "root", "-G", "root", "-e")


@dataclass
class Host:
    """`folder` is made; `id` is the host's UUID (libvirt's host_uuid too). Start with `start`, end with `end`."""

    folder: Path
    name: str = "h1"
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    keep: bool = False
    room: Room = field(init=False)
    sanlock: Running | None = None

    def __post_init__(self) -> None:
        binds = {self.folder / part: place for part, place in PRIVATE.items()}
        self.room = Room(self.name, self.folder, binds, MEMORY, hostname=self.name, keep=self.keep)

    def start(self, seconds: float = 60.0) -> None:
        """Power on: the room, sanlock, libvirtd. A host that was ended before starts with empty /run and old /var."""
        for part in PRIVATE:
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        for place in (*PRIVATE.values(), *MEMORY):
            Path(place).mkdir(parents=True, exist_ok=True)  # what is mounted over must exist on the machine
        self._configure()
        self.room.start()
        self.start_sanlock()
        self.start_libvirtd(seconds)

    def end(self) -> None:
        """Power cut: everything on the host is killed at once; folders stay."""
        self.room.end()

    def start_libvirtd(self, seconds: float = 60.0) -> None:
        """Start libvirtd unless it runs, and wait until it answers. One that ends while it starts is started again,
        as systemd would: right after a SIGKILL the threads of the old one may still hold its locks."""
        starts = itertools.count(time.monotonic(), 5.0)
        due = next(starts)

        def look() -> bool:
            nonlocal due
            if time.monotonic() >= due:
                due = next(starts)
                self.room.run([CONTROL, "start"], seconds=seconds)
            return "running" in self.room.run(
                ["sh", "-c", "virsh -q connect qemu:///system && echo running || true"], seconds=seconds
            )

        wait.until(f"libvirtd of {self.name} (see {self.folder}/log)", look, seconds)

    def start_sanlock(self, seconds: float = 30.0) -> None:
        """Start the lease daemon unless it runs, and wait until it answers. Its name for life is the host's id."""
        if self.sanlock is not None and self.sanlock.alive():
            return
        # what keeps it from a second start in one boot on real hosts: tests break that rule, and know it
        self.room.run(["touch", str(MARKER)])
        # unprivileged: it would stop where memory cannot be locked
        self.sanlock = self.spawn("sanlock", [*SANLOCK, self.id], {**os.environ, "SANLOCK_PRIVILEGED": "0"})
        wait.until(f"sanlock of {self.name} (see {self.folder}/log)", self._sanlock_answers, seconds)

    def _sanlock_answers(self) -> bool:
        return "daemon" in self.room.run(["sanlock", "client", "status"], check=False)

    def kill_sanlock(self) -> None:
        """SIGKILL: nobody renews this host's leases any more."""
        if self.sanlock is not None:
            self.sanlock.kill()

    def stop_libvirtd(self) -> None:
        """SIGTERM; guests run on."""
        self.room.run([CONTROL, "stop"])

    def kill_libvirtd(self) -> None:
        """SIGKILL, from outside, at once (for crash tests that count milliseconds); returns when it is dead."""
        pid = self.libvirtd_pid()
        os.kill(pid, signal.SIGKILL)
        wait.until(f"the end of libvirtd {pid}", lambda: proc.state(pid) in ("", "Z"), 10, every=0.001)

    def libvirtd_pid(self) -> int:
        """The real pid of libvirtd; RoomGone when it does not run."""
        return self._pid_in(self.room.inside("/run/libvirt/libvirtd.pid"))

    def qemu_pid(self, vm: str) -> int:
        """The real pid of the QEMU of a domain, found by libvirt's pid file; RoomGone when there is none."""
        return self._pid_in(self.room.inside(f"/run/libvirt/qemu/{vm}.pid"))

    def run(self, *argv: str | Path, seconds: float = 60.0, check: bool = True) -> str:
        """Run a command on the host; returns what it printed, CalledProcessError carries its stderr as a note."""
        return self.room.run(argv, seconds=seconds, check=check)

    def virsh(self, *words: str | Path, seconds: float = 60.0) -> str:
        return self.run("virsh", "-q", "-c", "qemu:///system", *words, seconds=seconds)

    def spawn(self, name: str, argv: Command, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Running:
        """Start a long-lived process on the host, for example its agent; its log is `<folder>/log/<name>.log`."""
        return self.room.spawn(name, argv, env, cwd)

    def _pid_in(self, pidfile: Path) -> int:
        try:
            inner = int(pidfile.read_text())
        except (OSError, ValueError) as error:
            raise RoomGone(f"{self.name}: no pid in {pidfile}") from error
        pid = self.room.outside(inner)
        if pid is None or proc.state(pid) in "Z":
            raise RoomGone(f"{self.name}: process {inner} of {pidfile.name} is not running")
        return pid

    def _configure(self) -> None:
        etc = self.folder / "etc"
        (etc / "qemu").mkdir(exist_ok=True)
        (etc / "qemu.conf").write_text(QEMU_CONF)
        (etc / "libvirtd.conf").write_text(
            f'host_uuid = "{self.id}"\nauth_unix_ro = "none"\nauth_unix_rw = "none"\n'
            f'log_outputs = "2:file:{PRIVATE["qemu-log"]}/libvirtd.log"\n'
        )
        (etc / "libvirt.conf").write_text("")
        (etc / "qemu-sanlock.conf").write_text(SANLOCK_CONF)
