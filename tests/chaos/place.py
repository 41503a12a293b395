"""Where the runs happen: a stack with two hosts, a VM of two disks on the first, a VM of one for the second."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from client.errors import ApiError, Unreachable
from deploy.stack import proc, wait
from deploy.stack.parts import Process
from deploy.stack.postgres import Postgres
from deploy.stack.room import RoomGone
from deploy.stack.stack import Stack
from deploy.world import Machine, World
from tests.chaos.keeper import Keeper

# slow writers: what a run waits for is deaths and ends, and on two cores every written block is taken from them
GUEST = {"ring_mib": 4, "rate_kib": 256, "batch": 8}
SERVICES = ("inventory", "snapshots")
# enough for a pull: more than these guests ever write, so that only volumes that were filled by hand are pulled into
SETTINGS = {"DRYSTONE_PULLS": "true", "DRYSTONE_PULL_SAVES": str(16 * 2**20)}
PASSES = (500, 502, 503, 504)  # statuses after which the same request is made again
CUT = "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'"
T = TypeVar("T")


class Place:
    """One furnished stack; `close` ends it. Its folder stays if `keep` says so."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.folder = Path(tempfile.mkdtemp(prefix="ds-"))
        self.postgres: Postgres | None = None

    def open(self) -> Place:
        databases = {}
        if self.database == "postgresql":
            self.postgres = Postgres(self.folder / "pg")
            self.postgres.start()
            for name in SERVICES:
                self.postgres.sql(f"create database {name}")
            databases = {name: self.postgres.url(name) for name in SERVICES}
        self.stack = Stack(self.folder / "s", hosts=2, databases=databases, settings=SETTINGS)
        self.keeper = Keeper(self.stack, self.postgres)
        try:
            self.stack.start()
            self.world = World.of(self.stack)
            self.api = self.world.api
            self.host, self.second = self.stack.hosts["h1"], self.stack.hosts["h2"]
            self.spare = self.api.storage_domains.create(self.new_domain("spare"))["id"]
            self.vm = self.world.machine("writer", disks=2, mib=64, **GUEST)
            self.other = self.world.machine("neighbour", mib=64, **GUEST)
            self.vm.start(self.host.id)
        except BaseException:
            self.close(keep=None)
            raise
        return self

    def close(self, keep: Path | None) -> None:
        """End everything; the folder with all logs goes to `keep`, or away."""
        if hasattr(self, "world"):
            self.world.close()
        self.stack.end(remove=False)
        if self.postgres is not None:
            self.postgres.end()
        if keep is not None:
            shutil.move(self.folder, keep)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def machines(self) -> tuple[Machine, Machine]:
        return self.vm, self.other

    # -- who dies at a point, and what is killed ----------------------------------------------------------

    def owner_of(self, point: str) -> Process:
        """The process that comes by this crash point."""
        kind = point.partition(".")[0]
        if kind in ("merge", "snapshot"):
            return self.stack.services["snapshots"]
        return self.stack.services["inventory"] if kind == "inventory" else self.stack.agents["h1"]

    def held(self, process: Process) -> int | None:
        """The pid of who stopped at the crash point; the process itself or a child of it."""
        fired = process.crash_file.with_name(process.crash_file.name + ".fired")
        with contextlib.suppress(OSError):
            words = fired.read_text().split()
            if len(words) == 3:
                return process.place().outside(int(words[2]))
        return None

    def disarm(self, process: Process) -> None:
        for name in (process.crash_file.name, process.crash_file.name + ".fired"):
            process.crash_file.with_name(name).unlink(missing_ok=True)

    def kill(self, victim: str, choice: int) -> None:
        """RoomGone if there is nothing to kill, for example no QEMU yet."""
        if victim == "qemu":
            os.kill(self.host.qemu_pid(f"vm-{self.vm.id}"), signal.SIGKILL)
        elif victim == "database":
            self._cut_database(whole=choice % 2 == 0)
        else:
            name = {"agent": "h1.agent", "libvirtd": "h1.libvirtd", "host": "h1"}.get(victim, victim)
            self.keeper.resting.add(victim)
            self.stack.kill(name)

    def _cut_database(self, *, whole: bool) -> None:
        if self.postgres is None:
            raise RoomGone("SQLite has no connection to lose")
        if whole:
            self.keeper.resting.add("database")
            self.postgres.kill()
        else:
            for name in SERVICES:
                self.postgres.sql(CUT.format(name))

    def bring_back(self, seconds: float = 60) -> None:
        """Everything runs and is ready, and both hosts are up."""
        self.keeper.bring_back(seconds)
        self.until("both hosts up", self._hosts_are_up, seconds)

    def _hosts_are_up(self) -> bool:
        return all(self.api.hosts.get(host.id)["state"] == "up" for host in (self.host, self.second))

    # -- waiting, while things are away -------------------------------------------------------------------

    def until(self, what: str, look: Callable[[], T | None], seconds: float = 60) -> T:
        """As wait.until; what cannot be asked now is asked again, and what died meanwhile is started."""
        tended = time.monotonic()

        def patient() -> T | None:
            nonlocal tended
            if time.monotonic() > tended + 2:
                self.keeper.tend()
                tended = time.monotonic()
            try:
                return look()
            except Unreachable:
                return None
            except ApiError as fault:
                if fault.status in PASSES:
                    return None
                raise

        return wait.until(what, patient, seconds, every=0.1)

    def job(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """The job as it ended."""
        ended = ("done", "undone", "stuck")

        def look() -> dict[str, Any] | None:
            job = dict(self.api.jobs.get(job_id))
            return job if job["state"] in ended else None

        return self.until(f"the end of job {job_id}", look, seconds)

    def settled(self, vm: Machine, seconds: float = 60) -> str:
        """`running` or `down`, once it is one of them and stays so."""
        return self.until(
            "the VM to run or be down", lambda: vm.state() if vm.state() in ("running", "down") else None, seconds
        )

    def running(self, vm: Machine) -> None:
        """Started if it is down. Of a host that has just come back the inventory may still know what was: only a guest
        that writes runs."""
        self.until("the VM to run and write", lambda: self._runs(vm), 200)

    def _runs(self, vm: Machine) -> bool:
        seconds = 10
        if self.settled(vm) == "down":
            where, seconds = self.host if vm is self.vm else self.second, 80
            self.until("a start", lambda: vm.api.start_vm(vm.id, where.id))
            self.until("the VM to run", lambda: vm.state() == "running")
        with contextlib.suppress(wait.NotInTime):
            vm.wait_for_writes(1, seconds=seconds)
            return True
        return False

    def new_domain(self, name: str) -> dict[str, Any]:
        """What to ask for a storage domain of this name, that the first host writes to."""
        path = self.stack.folder / name
        path.mkdir()
        center = self.api.clusters.get(self.world.cluster_id)["data_center_id"]
        return {"name": name, "data_center_id": center, "path": str(path), "host_id": self.host.id}

    def taken(self, vm: Machine, description: str) -> str:
        made = self.job(vm.api.create_snapshot(vm.id, {"description": description})["id"])
        assert made["state"] == "done", made
        return str(made["snapshot_id"])

    def snapshots(self, vm: Machine) -> list[str]:
        return [str(row["id"]) for row in vm.api.snapshots.all(vm_id=vm.id)]


def stopped(pid: int) -> bool:
    return proc.state(pid) == "T"
