"""What is asked of the product in a run, what it is to lead to, and how it is asked again when it was undone."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client.errors import ApiError, Unreachable
from deploy.world import Machine
from tests.chaos.place import Place
from tests.chaos.walk import Plan

MOST = 4  # snapshots that a VM may have gathered before a run begins
MIB = 2**20
SLOW = 64 * 1024  # bytes a second: such a merge does not end before it is cancelled


@dataclass
class Operation:
    """`targets`: the snapshots that are to go, `before`: those that each VM had."""

    place: Place
    plan: Plan
    targets: dict[str, Machine] = field(default_factory=dict)
    before: dict[str, list[str]] = field(default_factory=dict)

    def prepare(self) -> None:
        self.place.running(self.place.vm)
        for vm in self.place.machines:
            had = self.place.snapshots(vm)
            if len(had) > MOST:
                ended = self.place.job(vm.api.remove_snapshots({"snapshots": had})["id"])
                assert ended["state"] == "done", ended
        self.arrange()
        self.before = {vm.id: self.place.snapshots(vm) for vm in self.place.machines}

    def arrange(self) -> None:
        """What has to be there before."""

    @property
    def touched(self) -> tuple[Machine, ...]:
        """The VMs whose disks are held to the model at the end."""
        mine = {self.place.vm.id, *(vm.id for vm in self.targets.values())}
        return tuple(vm for vm in self.place.machines if vm.id in mine)

    def ask(self, key: str) -> str:
        """Ask; answers the job's id. Asking again with the same key asks for the same thing."""
        raise NotImplementedError

    def follow(self, job_id: str) -> None:
        """What is asked once the job is there."""

    def end(self, job_id: str) -> Mapping[str, Any]:
        return self.place.job(job_id)

    def over(self, job_id: str) -> bool:
        """Has it come to an end, as far as can be seen now?"""
        return self.place.api.jobs.get(job_id)["state"] in ("done", "undone", "stuck")

    def clean(self) -> None:
        """Take away what the run made, if it is nothing of a VM."""

    def repeat(self) -> None:
        """What was undone is asked for once more, in peace."""
        ended = self.place.job(self.ask_anew())
        assert ended["state"] == "done", f"asked once more: {ended['state']}, {ended['reason']}"

    def ask_anew(self) -> str:
        left = [one for one, vm in self.targets.items() if one in self.place.snapshots(vm)]
        if not left:
            raise AssertionError("the removal was undone, and its snapshots are gone")
        return str(self.place.api.remove_snapshots({"snapshots": left})["id"])

    def expected(self, vm: Machine, made: str | None) -> list[str]:
        """The snapshots that a VM has at the end."""
        return [one for one in self.before[vm.id] if one not in self.targets]

    def _take(self, count: int, vm: Machine | None = None) -> list[str]:
        vm = vm or self.place.vm
        taken = []
        for number in range(count):
            taken.append(self.place.taken(vm, f"number {number}"))
            vm.wait_for_writes(16, seconds=80)
        return taken

    def _goes(self, vm: Machine, *snapshots: str) -> None:
        self.targets.update(dict.fromkeys(snapshots, vm))


class Take(Operation):
    def ask(self, key: str) -> str:
        return str(self.place.api.create_snapshot(self.place.vm.id, {"description": "in danger"}, key=key)["id"])

    def ask_anew(self) -> str:
        return str(self.place.api.create_snapshot(self.place.vm.id, {"description": "once more"})["id"])

    def expected(self, vm: Machine, made: str | None) -> list[str]:
        had = self.before[vm.id]
        if vm is self.place.vm:
            new = [one for one in self.place.snapshots(vm) if one not in had]
            assert len(new) == 1, f"{len(new)} new snapshots"
            assert made in (None, *new), f"snapshot {made} is not there"
            return [*had, *new]
        return had


class Internal(Operation):
    """One volume is merged in the middle of the chain."""

    def arrange(self) -> None:
        goes, _ = self._take(2)
        self._goes(self.place.vm, goes)

    def ask(self, key: str) -> str:
        (goes,) = self.targets
        return str(self.place.api.remove_snapshot(goes, key=key)["id"])


class Active(Internal):
    """The volume that the guest writes to is merged."""

    def arrange(self) -> None:
        self._goes(self.place.vm, *self._take(1))


class Down(Active):
    """The VM is down, and a host copies offline. Whoever ends its QEMU finds none."""

    def arrange(self) -> None:
        super().arrange()
        self.place.vm.power_off()


class DownInside(Internal):
    """As Down, in the middle of the chain."""

    def arrange(self) -> None:
        super().arrange()
        self.place.vm.power_off()


class Range(Operation):
    """Several neighbours in one job, with the active volume or without."""

    def arrange(self) -> None:
        taken = self._take(3)
        with_active = "pivot" in self.plan.point or self.plan.choice % 3
        self._goes(self.place.vm, *(taken if with_active else taken[:2]))

    def ask(self, key: str) -> str:
        return str(self.place.api.remove_snapshots({"snapshots": list(self.targets)}, key=key)["id"])


class Pull(Internal):
    """The newest snapshot, which holds little, under an active volume that holds much: that is pulled up."""

    def arrange(self) -> None:
        _, goes = self._take(2)
        vm = self.place.vm
        vm.power_off()
        for disk in range(len(vm.disks)):
            fill(vm, disk, "24M 32M")
        self.place.running(vm)
        self._goes(vm, goes)
        plan = self.place.api.remove_snapshots({"snapshots": [goes], "dry_run": True})
        assert {merge["direction"] for merge in plan["merges"]} == {"pull"}, plan["merges"]


class DownPull(Pull):
    """The same of a VM that is down: inside the chain every other time, which a running VM cannot be pulled into."""

    def arrange(self) -> None:
        super().arrange()
        vm = self.place.vm
        if self.plan.choice % 2:
            self.place.taken(vm, "on top")
        vm.power_off()


class Many(Range):
    """Snapshots of two VMs on two hosts."""

    def arrange(self) -> None:
        self.place.running(self.place.other)  # which costs too much to run all the time
        for vm in self.place.machines:
            self._goes(vm, *self._take(1, vm))

    def clean(self) -> None:
        self.place.other.power_off()


class Cancel(Active):
    """A merge that a person ends before it is done."""

    def arrange(self) -> None:
        super().arrange()
        self.place.vm.wait_for_writes(192, seconds=80)

    def ask(self, key: str) -> str:
        (goes,) = self.targets
        return str(self.place.api.remove_snapshot(goes, key=key, bandwidth=SLOW)["id"])

    def follow(self, job_id: str) -> None:
        def copying() -> bool:
            job = self.place.api.jobs.get(job_id)
            return job["progress"]["cur"] > 0 or self.over(job_id)

        self.place.until("some progress", copying)
        self.place.api.cancel_job(job_id)

    def end(self, job_id: str) -> Mapping[str, Any]:
        """Asked for again: the first cancel may have been lost with who was to hear it."""
        if not self.place.until("an answer", lambda: [self.over(job_id)])[0]:
            with contextlib.suppress(ApiError, Unreachable):  # too late is an answer too
                self.place.api.cancel_job(job_id)
        return self.place.job(job_id)


def fill(vm: Machine, disk: int, where: str) -> None:
    """Write into the active volume of a VM that is down, behind what its guest uses."""
    leaf = vm.folder(disk) / vm.chain(disk)[-1]["volume_id"]
    words = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P 5 {where}", str(leaf)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


ALL: dict[str, type[Operation]] = {
    "take": Take,
    "internal": Internal,
    "active": Active,
    "range": Range,
    "pull": Pull,
    "many": Many,
    "down newest": Down,
    "down inside": DownInside,
    "down pull": DownPull,
    "cancel": Cancel,
}
