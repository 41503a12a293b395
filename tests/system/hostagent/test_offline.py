"""Merges of a VM that is down, on real QEMU, qemu-img and sanlock: two hosts, one domain.

A VM of the writing guest runs, gets snapshots, and is switched off; afterwards every block that its guest acknowledged
must read back, before and after the next start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts import errors
from deploy.guest import image
from deploy.stack import wait
from services.hostagent import files, layout
from tests.system.hostagent.lab import Agent, in_background
from tests.system.hostagent.leased import LeasedVm, hanging, start, state, wait_joined

pytestmark = pytest.mark.lab
Pair = tuple[Agent, Agent]
SLOW = 2 * 2**20  # bytes a second: a copy that lasts some seconds


class OfflineVm(LeasedVm):
    """Written to by its guest in each of its layers, and down. `agent` merges."""

    def offline(self, base: int, layers: int = 1, bandwidth: int = 0, *, pull: bool = False) -> dict[str, Any]:
        """A pull takes so many layers from `base` on up."""
        below = self.volumes[0][base - 1] if pull and base else None
        way: dict[str, Any] = {"pull": pull, "below_id": below, "bandwidth": bandwidth}
        return self.merge(base, layers=layers, lease=self.lockspace(1), **way)

    def begin(self, request: dict[str, Any]) -> None:
        self.agent.ask("merge_offline", request)

    def job(self) -> dict[str, Any] | None:
        job: dict[str, Any] | None = self.look()["offline"]
        return job

    def is_merged(self, request: dict[str, Any]) -> bool:
        """What the flow believes: the marks and records on the storage."""
        storage = self.look()["storage"]
        volumes = {one["volume_id"]: one for one in storage["volumes"]}
        gone = request["base_id"] if request["pull"] else request["top_id"]
        marked = all(volumes[one]["legality"] == "illegal" for one in (gone, *request["between"]))
        if request["pull"]:
            top = volumes[request["top_id"]]
            return marked and top["parent_id"] == top["backing_id"] == request["below_id"]
        child = request["child_id"]
        below = storage["leaf"] if child is None else volumes[child]["backing_id"]
        return marked and below == request["base_id"]

    def finish_offline(self, request: dict[str, Any]) -> None:
        """As a flow does: ask until it is merged; record and discard. A writer that was killed may have left the lease
        to its qemu-img for a moment."""

        def merged() -> bool:
            if self.job() is None and not self.is_merged(request):
                with contextlib.suppress(errors.LeaseHeld):
                    self.begin(request)
            return self.is_merged(request)

        wait.until("the merge", merged, 60, every=0.2)
        plain = {key: value for key, value in request.items() if key not in ("lease", "bandwidth", "pull")}
        if request["pull"]:
            self.finish_pull(plain)
        else:
            self.finish({key: value for key, value in plain.items() if key != "below_id"})

    def dies_and_is_finished(self, point: str, request: dict[str, Any]) -> None:
        """The writer ends at this point; the next ask goes on from what it left."""
        self.agent.crash_at(point)
        with pytest.raises(errors.JobFailed, match="its writer ended with -9"):
            self.begin(request)
        self.finish_offline(request)
        self.sound()

    def sound(self) -> None:
        """Nothing acknowledged is lost, now and after the guest wrote on."""
        assert self.check().ok, self.check().summary()
        start(self.agent, self, 1)
        self.writes_on()
        self.power_off()
        assert self.check().ok, self.check().summary()
        files = {one.name.split(".")[0] for one in self.folder().iterdir()}
        assert files == set(self.volumes[0])


@pytest.fixture
def vm(agents: Pair, folder: Path, guest: image.Image) -> Iterator[OfflineVm]:
    """Four layers, each written to, and down."""
    made = OfflineVm(agents[0], agents[0].host.folder.parent, guest)
    made.log = folder / "serial"
    LeasedVm.shared = made.domain
    for number, agent in enumerate(agents, 1):
        agent.ask("join_domain", made.lockspace(number))
        wait_joined(agent, made)
    start(agents[0], made, 1)
    for _ in range(3):
        made.writes_on()
        made.snapshot()
    made.writes_on()
    made.power_off()
    yield made
    for agent in agents:
        agent.ask("power_off_vm", {"vm_id": made.id})
    agents[0].ask("drop_lease", {"vm_id": made.id, "domain": made.domain})


@pytest.mark.chaos
@pytest.mark.parametrize(("base", "layers"), [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (0, 3)])
def test_layers_go_down_into_base_and_nothing_is_lost(vm: OfflineVm, base: int, layers: int) -> None:
    """Internal and leaf, one layer and ranges."""
    request = vm.offline(base, layers)
    vm.finish_offline(request)
    assert len(vm.volumes[0]) == 4 - layers
    vm.sound()


@pytest.mark.parametrize(
    ("base", "layers"),
    [(1, 1), *(pytest.param(*one, marks=pytest.mark.chaos) for one in ((0, 1), (2, 1), (0, 2), (1, 2), (0, 3)))],
)
def test_layers_go_up_into_top_and_nothing_is_lost(vm: OfflineVm, base: int, layers: int) -> None:
    """Inside and into the leaf, one layer and ranges."""
    request = vm.offline(base, layers, pull=True)
    leaf = vm.leaf()
    vm.finish_offline(request)
    assert (len(vm.volumes[0]), vm.leaf()) == (4 - layers, leaf)
    vm.sound()


@pytest.mark.chaos
@pytest.mark.parametrize("pull", [False, True])
def test_its_progress_is_seen_and_it_ends_when_it_is_cancelled(vm: OfflineVm, pull: bool) -> None:
    behind = str(vm.folder() / vm.volumes[0][2])  # what the guest writes, for a copy that lasts some seconds
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q 48M 12M", behind], check=True, timeout=60)
    request = vm.offline(2, bandwidth=SLOW, pull=pull)
    vm.begin(request)
    wait.until("some progress", lambda: (vm.job() or {"cur": 0})["cur"] > 0, 30)
    job = vm.job()
    assert job is not None
    kind = "offline_pull" if pull else "offline"
    assert (job["type"], job["top_id"], job["speed"]) == (kind, request["top_id"], SLOW)
    (vm.cancel_pull if pull else vm.cancel)(request)
    assert vm.job() is None
    assert vm.leaf() == request["top_id"]
    with pytest.raises(errors.StaleClaim):
        vm.begin(request)
    vm.number += 1
    vm.finish_offline(vm.offline(2, pull=pull))
    vm.sound()


@pytest.mark.chaos
@pytest.mark.parametrize("pull", [False, True])
def test_its_limit_is_changed_while_it_copies(vm: OfflineVm, pull: bool) -> None:
    behind = str(vm.folder() / vm.volumes[0][2])
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q 48M 12M", behind], check=True, timeout=60)
    request = vm.offline(2, bandwidth=SLOW, pull=pull)
    limit = {key: request[key] for key in ("vm_id", "disk", "claim")}
    vm.begin(request)
    wait.until("some progress", lambda: (vm.job() or {"cur": 0})["cur"] > 0, 30)
    for slow in (SLOW // 2, 1):
        vm.agent.ask("set_bandwidth", {**limit, "bandwidth": slow})
        assert (vm.job() or {})["speed"] == slow
    time.sleep(2)
    before = (vm.job() or {})["cur"]
    time.sleep(3)
    assert (vm.job() or {})["cur"] == before, "a byte a second"
    vm.agent.ask("set_bandwidth", {**limit, "bandwidth": 0})
    vm.finish_offline(request)
    vm.sound()


@pytest.mark.chaos
def test_a_cancel_waits_for_a_writer_that_outlived_its_agent(vm: OfflineVm) -> None:
    place, request = layout.Place(vm.domain["path"], vm.domain["id"]), vm.offline(2)
    with contextlib.ExitStack() as writing:
        writing.enter_context(files.image_lock(place, str(request["disk"]["disk_id"])))
        with in_background(vm.cancel, request) as cancelling:
            time.sleep(2)
            assert "reply" not in cancelling
            writing.close()
        assert "reply" in cancelling


def test_a_start_is_refused_while_it_copies_and_goes_through_after_a_cancel(agents: Pair, vm: OfflineVm) -> None:
    request = vm.offline(2, bandwidth=SLOW)
    vm.begin(request)
    wait.until("the copy", lambda: (vm.job() or {"cur": 0})["cur"] > 0, 30)
    for number, agent in enumerate(agents, 1):
        with pytest.raises(errors.LeaseHeld):
            start(agent, vm, number)
    vm.cancel(request)
    before = vm.safe()
    assert start(agents[0], vm, 1)["state"] == "running"
    vm.writes_on(above=before)
    vm.number += 1
    again = vm.offline(2)
    with pytest.raises(errors.VmWrongState):
        vm.begin(again)
    live = vm.commit(2)
    vm.wait_ready()
    vm.agent.ask("pivot", live)
    vm.finish(live)
    vm.power_off()
    vm.sound()


OF_A_LEAF = (
    *("offline.before_copy", "offline.after_copy", "offline.after_mark", "offline.after_record"),
    *("volume.record.after_top", "volume.record.after_base"),
)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("point", "layers"),
    [*((point, layers) for point in OF_A_LEAF for layers in (1, 3)), ("volume.record.after_between", 3)],
)
def test_a_writer_that_dies_is_finished_by_the_next_ask(vm: OfflineVm, point: str, layers: int) -> None:
    vm.dies_and_is_finished(point, vm.offline(3 - layers, layers))


@pytest.mark.chaos
@pytest.mark.parametrize(
    "point", ["offline.after_copy", "offline.after_header", "volume.record.after_top", "volume.record.after_child"]
)
def test_an_internal_merge_whose_writer_died_is_finished_by_the_next_ask(vm: OfflineVm, point: str) -> None:
    vm.dies_and_is_finished(point, vm.offline(1))


PULL = ["offline.before_copy", "offline.after_copy", "volume.pull.after_mark", "volume.pull.after_top"]


@pytest.mark.chaos
@pytest.mark.parametrize("point", PULL)
@pytest.mark.parametrize(("base", "layers"), [(1, 1), (1, 2)])
def test_a_pull_whose_writer_died_is_finished_by_the_next_ask(
    vm: OfflineVm, point: str, base: int, layers: int
) -> None:
    vm.dies_and_is_finished(point, vm.offline(base, layers, pull=True))


AFTER = ["offline.after_copy", "offline.after_header", "volume.record.after_top", "volume.record.after_child"]


@pytest.mark.chaos
@pytest.mark.parametrize(("point", "pull"), [*((one, False) for one in AFTER), *((one, True) for one in PULL)])
def test_a_vm_starts_from_what_a_dead_writer_left(agents: Pair, vm: OfflineVm, point: str, pull: bool) -> None:
    """Whole on either side of the record: on another host, from the chain of before or from the one of after."""
    request = vm.offline(1, pull=pull)
    vm.agent.crash_at(point)
    with pytest.raises(errors.JobFailed):
        vm.begin(request)
    before = vm.safe()
    start(agents[1], vm, 2)
    vm.writes_on(above=before)
    agents[1].ask("power_off_vm", {"vm_id": vm.id})
    vm.finish_offline(request)
    vm.sound()


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["agent", "qemu-img", "sanlock"])
def test_a_copy_whose_part_dies_is_begun_anew(vm: OfflineVm, victim: str) -> None:
    agent, request = vm.agent, vm.offline(2, bandwidth=SLOW)
    vm.begin(request)
    wait.until("the copy", lambda: (vm.job() or {"cur": 0})["cur"] > 0, 30)
    copying = _copying(request["top_id"])
    if victim == "agent":
        agent.kill()
        agent.start()
    elif victim == "qemu-img":
        for pid in copying:
            os.kill(pid, signal.SIGKILL)
        wait.until("the end of the copy", lambda: vm.job() is None, 30)
        with pytest.raises(errors.JobFailed, match="qemu-img ended with -9"):
            vm.begin(request)
    else:
        agent.host.kill_sanlock()
    wait.until("the end of the copy", lambda: not _copying(request["top_id"]) or victim == "sanlock", 30)
    if victim == "sanlock":
        vm.cancel(request)
        vm.number += 1
        agent.host.start_sanlock()
        wait_joined(agent, vm)
    vm.finish_offline(vm.offline(2))
    vm.sound()


@pytest.mark.chaos
def test_a_merge_that_ends_while_another_host_starts_the_vm_is_noticed(agents: Pair, vm: OfflineVm) -> None:
    """QEMU opens its files before libvirt takes the lease: its guest must not run on what is dropped."""
    second, request, log = agents[1], vm.offline(2), vm.log
    vm.log = log.with_name("lost")
    with hanging(second, vm, "createXML:6"):
        with in_background(start, second, vm, 2) as starting:
            time.sleep(3)
            vm.begin(request)
            assert vm.is_merged(request)
        assert isinstance(starting["problem"], errors.ChainDiffers), starting
        assert state(second, vm) == "down"
        assert not _has_run(vm)
        assert not second.journal()["openings"]
    vm.log = log
    vm.finish_offline(request)
    vm.sound()


@pytest.mark.chaos
def test_a_guest_does_not_run_on_what_is_dropped_though_the_agent_died(agents: Pair, vm: OfflineVm) -> None:
    """The agent dies between launch and look: the guest stands still, and is ended once the agent is back."""
    second, request, log = agents[1], vm.offline(2), vm.log
    vm.log = log.with_name("lost")
    with hanging(second, vm, "createXML:6"):
        second.crash_at("start.after_settled")
        with in_background(start, second, vm, 2):
            time.sleep(3)
            vm.begin(request)
            assert vm.is_merged(request)
            second.wait_crashed()
        assert second.host.qemu_pid(f"vm-{vm.id}")
        assert second.journal()["openings"][vm.id]
    wait.until("the VM to be ended", lambda: state(second, vm) == "down", 60)
    wait.until("the note to go", lambda: not second.journal()["openings"], 30)
    assert not _has_run(vm)
    vm.log = log
    vm.finish_offline(request)
    vm.sound()


def _has_run(vm: OfflineVm) -> bool:
    """Whether its guest got as far as to say anything."""
    return vm.log.exists() and vm.log.stat().st_size > 0


def _copying(top_id: str) -> list[int]:
    """The qemu-img processes that commit this volume."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == b"qemu-img" and top_id.encode() in words:
                found.append(int(entry.name))
    return found
