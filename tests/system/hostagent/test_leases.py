"""Leases of VMs on real sanlock: two hosts, one domain. io_timeout is 1 s: a lockspace is joined in 3 s."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from contracts import errors
from deploy.guest import image
from deploy.stack import wait
from deploy.stack.host import Host
from services.hostagent import layout, under_lease
from tests.system.hostagent.lab import MIB, Agent, Vm, in_background, new_id
from tests.system.hostagent.leased import LeasedVm, lockspaces, start, state, wait_joined, write_offline

pytestmark = pytest.mark.lab
Pair = tuple[Agent, Agent]


@pytest.fixture(scope="module")
def agents() -> Iterator[Pair]:
    """h1 and h2, with host ids 1 and 2."""
    folder = Path(tempfile.mkdtemp(prefix="ds-"))
    pair = tuple(Agent(Host(folder / name, name), heartbeat=1.0) for name in ("h1", "h2"))
    for agent in pair:
        agent.host.start()
        agent.start()
    yield pair  # type: ignore[misc]  # two of them
    LeasedVm.shared = None
    for agent in pair:
        agent.caller.close()
        agent.host.end()
    shutil.rmtree(folder)


@pytest.fixture
def vm(agents: Pair, folder: Path, guest: image.Image) -> Iterator[LeasedVm]:
    """Down, on the domain that both hosts join."""
    made = LeasedVm(agents[0], agents[0].host.folder.parent, guest)
    made.log = folder / "serial"
    LeasedVm.shared = made.domain
    for number, agent in enumerate(agents, 1):
        agent.ask("join_domain", made.lockspace(number))
        wait_joined(agent, made)
    yield made
    for agent in agents:
        agent.ask("power_off_vm", {"vm_id": made.id})
    agents[0].ask("drop_lease", {"vm_id": made.id, "domain": made.domain})


def test_a_second_start_is_refused_with_the_holder_named(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    assert start(first, vm, 1)["state"] == "running"
    wait_joined(second, vm)
    with pytest.raises(errors.LeaseHeld, match="host number 1"):
        start(second, vm, 2)
    assert state(second, vm) == "down"
    assert state(first, vm) == "running"


@pytest.mark.chaos
def test_the_lease_is_free_when_qemu_was_killed(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    start(first, vm, 1)
    os.kill(first.host.qemu_pid(f"vm-{vm.id}"), signal.SIGKILL)
    wait.until("the end of the VM", lambda: state(first, vm) == "down", 30)
    assert start(second, vm, 2)["state"] == "running"


@pytest.mark.chaos
def test_a_lease_is_kept_over_a_restart_of_libvirtd_and_of_the_agent(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    start(first, vm, 1)
    wait_joined(second, vm)
    first.host.kill_libvirtd()
    first.host.start_libvirtd()
    first.kill()
    first.start()
    wait_joined(first, vm)
    with pytest.raises(errors.LeaseHeld):
        start(second, vm, 2)
    first.host.virsh("suspend", f"vm-{vm.id}")
    first.host.virsh("resume", f"vm-{vm.id}")
    assert state(first, vm) == "running"


@pytest.mark.chaos
def test_an_agent_that_restarts_joins_again_what_its_sanlock_lost(agents: Pair, vm: LeasedVm) -> None:
    first, _ = agents
    wait_joined(first, vm)
    first.kill()
    first.host.kill_sanlock()
    first.host.start_sanlock()
    assert "s " not in first.host.run("sanlock", "client", "status")
    first.start()
    wait_joined(first, vm)
    assert start(first, vm, 1)["state"] == "running"


def test_one_lease_is_made_when_two_hosts_ask_at_once(agents: Pair, vm: LeasedVm) -> None:
    """Both write under SDM; one start is refused, and the index names the VM once."""
    for agent in agents:
        wait_joined(agent, vm)
    with in_background(start, agents[0], vm, 1) as one, in_background(start, agents[1], vm, 2) as other:
        pass
    outcomes = [one, other]
    assert sorted(key for outcome in outcomes for key in outcome if key != "at") == ["problem", "reply"], outcomes
    index = vm.xleases.read_bytes()[MIB : MIB + 512 + 3960 * 64]
    assert index.count(vm.id.encode()) == 1


def test_the_index_is_the_familys_byte_by_byte(agents: Pair, vm: LeasedVm) -> None:
    start(agents[0], vm, 1)
    data = vm.xleases.read_bytes()
    made = int(data[MIB + 59 : MIB + 69])
    # the first record is free: every other VM's lease went with it
    record = vm.id.encode().ljust(48, b"\0") + b"\0" + b"00003145728" + b"\0" + b"--\n"
    wanted = layout.empty_lease_index(vm.domain["id"], made)
    assert data[MIB : MIB + len(wanted)] == wanted[:512] + record + wanted[576:]
    assert len(data) >= 4 * MIB
    resource = agents[0].host.run("sanlock", "direct", "dump", f"{vm.xleases}:{3 * MIB}:{MIB}")
    assert vm.id in resource


@pytest.mark.chaos
@pytest.mark.parametrize("point", ["lease.after_resource", "lease.after_record"])
def test_a_lease_whose_writer_died_is_finished_by_the_next_start(agents: Pair, vm: LeasedVm, point: str) -> None:
    first, _ = agents
    first.crash_at(point)
    with pytest.raises(errors.LeaseFailed, match="its writer ended with -9"):
        start(first, vm, 1)
    assert start(first, vm, 1)["state"] == "running"
    assert vm.xleases.read_bytes()[MIB : 2 * MIB].count(vm.id.encode()) == 1


def test_a_lease_goes_with_its_vm_but_never_while_it_is_held(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    start(first, vm, 1)
    wait_joined(second, vm)
    for agent in agents:
        with pytest.raises(errors.LeaseHeld):
            agent.ask("drop_lease", {"vm_id": vm.id, "domain": vm.domain})
    first.ask("power_off_vm", {"vm_id": vm.id})
    second.ask("drop_lease", {"vm_id": vm.id, "domain": vm.domain})
    second.ask("drop_lease", {"vm_id": vm.id, "domain": vm.domain})
    assert vm.id.encode() not in vm.xleases.read_bytes()[MIB : 2 * MIB]
    assert start(second, vm, 2)["state"] == "running"


def test_an_offline_writer_and_a_start_exclude_each_other(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    for agent in agents:
        wait_joined(agent, vm)
    go = vm.xleases.with_name("go")
    shell = f"until [ -e {go} ]; do sleep 0.1; done; qemu-img resize -q {vm.folder() / vm.volumes[0][0]} 300M"
    with in_background(write_offline, first, vm, "sh", "-c", shell) as writing:
        wait.until("the writer's lease", lambda: refused_start(second, vm, 2) is not None, 30)
        assert "host number 1" in str(refused_start(second, vm, 2))
        assert "a process of this host" in str(refused_start(first, vm, 1))
        go.touch()
    assert writing["reply"] == "0"
    assert start(second, vm, 2)["state"] == "running"
    assert write_offline(first, vm, "true").startswith("lease_held")
    assert write_offline(second, vm, "true").startswith("lease_held")


def refused_start(agent: Agent, vm: LeasedVm, number: int) -> errors.Problem | None:
    """The refusal of a start; a VM that started is powered off again."""
    try:
        start(agent, vm, number)
    except errors.LeaseHeld as held:
        return held
    agent.ask("power_off_vm", {"vm_id": vm.id})
    return None


@pytest.mark.chaos
def test_a_guest_that_is_continued_behind_libvirts_back_is_destroyed(agents: Pair, vm: LeasedVm) -> None:
    """The monitor's `cont` takes no lease: the guest would run beside another start."""
    first, _ = agents
    start(first, vm, 1)
    first.host.virsh("suspend", f"vm-{vm.id}")
    first.host.virsh("qemu-monitor-command", f"vm-{vm.id}", "--hmp", "cont")
    wait.until("the end of the VM", lambda: state(first, vm) == "down", 30)

    def told() -> list[str]:
        downs = [news for name, news in first.news if name == "vm_changed" and news["state"] == "down"]
        return [news["reason"] for news in downs if news["vm_id"] == vm.id]

    wait.until("the news of it", told, 30)
    assert "without its lease" in told()[-1]


@pytest.mark.chaos
def test_a_vm_that_moved_while_a_pivot_paused_it_is_destroyed_where_it_was(agents: Pair, vm: LeasedVm) -> None:
    """Never resumed on a chain that another host writes to: libvirt gets no lease, and the old QEMU goes."""
    first, second = agents
    start(first, vm, 1)
    vm.snapshot()
    request = vm.commit(0)
    vm.wait_ready()
    first.crash_at("pivot.after_suspend")
    with in_background(first.ask, "pivot", request):
        first.wait_crashed()
    wait_joined(second, vm)
    assert write_offline(second, vm, "true") == "0"  # the lease is free: libvirt gave it up at the pause
    with in_background(write_offline, second, vm, "sleep", "15"):
        time.sleep(2)
        first.start()
        wait.until("the end of the VM", lambda: state(first, vm) == "down", 60)


@pytest.mark.chaos
def test_a_guest_that_stands_still_and_holds_its_lease_goes_on(agents: Pair, vm: LeasedVm) -> None:
    """libvirtd died between stopping it and giving its lease up: it refuses each resume, since the lease is taken."""
    first, _ = agents
    start(first, vm, 1)
    vm.snapshot()
    request = vm.commit(0)
    vm.wait_ready()
    first.crash_at("pivot.after_journal")
    with in_background(first.ask, "pivot", request):
        first.wait_crashed()
    first.host.kill_libvirtd()
    stop_behind_libvirts_back(first, vm)
    first.host.start_libvirtd()
    first.start()
    wait.until("the end of the pause", lambda: not vm.look()["paused_by_pivot"], 60)
    vm.writes_on()
    assert state(first, vm) == "running"
    first.host.virsh("suspend", f"vm-{vm.id}")
    first.host.virsh("resume", f"vm-{vm.id}")
    vm.writes_on()


def stop_behind_libvirts_back(agent: Agent, vm: Vm) -> None:
    """libvirtd is dead; over the socket that was its own the guest is stopped, its lease stays."""
    (socket,) = Path(agent.host.folder / "lib/qemu").glob(f"domain-*-vm-{vm.id[:10]}*/monitor.sock")

    async def stop() -> None:
        client = QMPClient()
        await client.connect(str(socket))
        await client.execute("stop")
        await client.disconnect()

    asyncio.run(stop())


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("qemu.conf", ('lock_manager = "sanlock"', ""), "lock_manager is not set in /etc/libvirt/qemu.conf"),
        ("qemu.conf", ('"sanlock"', '"lockd"'), "lock_manager is 'lockd' in /etc/libvirt/qemu.conf"),
        ("qemu-sanlock.conf", ("auto_disk_leases = 0", ""), "auto_disk_leases is not 0"),
        ("qemu-sanlock.conf", ("for_disks = 0", "for_disks = 1"), "require_lease_for_disks is not 0"),
    ],
)
def test_a_wrong_set_up_is_refused_with_file_and_option(
    agents: Pair, vm: LeasedVm, file: str, change: tuple[str, str], says: str
) -> None:
    path = agents[0].host.folder / "etc" / file
    good = path.read_text()
    path.write_text(good.replace(*change))
    try:
        with pytest.raises(errors.LeasesUnfit, match=says):
            start(agents[0], vm, 1)
    finally:
        path.write_text(good)
    assert state(agents[0], vm) == "down"


@pytest.mark.chaos
def test_a_libvirtd_that_has_not_read_its_file_gets_no_vm(agents: Pair, vm: LeasedVm) -> None:
    """The files are right, but the running libvirtd takes no leases: the guest is ended at once."""
    agent = agents[0]
    path = agent.host.folder / "etc/qemu.conf"
    good = path.read_text()
    path.write_text(good.replace('lock_manager = "sanlock"', ""))
    agent.host.stop_libvirtd()
    agent.host.start_libvirtd()
    path.write_text(good)
    wait.until("libvirt", lambda: agent.beat()["problem"] is None, 30)
    try:
        with pytest.raises(errors.LeaseNotTaken):
            start(agent, vm, 1)
        assert state(agent, vm) == "down"
    finally:
        agent.host.stop_libvirtd()
        agent.host.start_libvirtd()
        wait.until("libvirt", lambda: agent.beat()["problem"] is None, 30)
    assert start(agent, vm, 1)["state"] == "running"


@pytest.mark.chaos
def test_a_sanlock_that_dies_under_a_running_vm_is_told(agents: Pair, vm: LeasedVm) -> None:
    agent = agents[0]
    start(agent, vm, 1)
    assert agent.beat()["facts"]["leases_fault"] is None
    agent.host.kill_sanlock()
    try:
        told = lambda: vm.id in (agent.beat()["facts"]["leases_fault"] or "")  # noqa: E731
        wait.until("the heartbeat to say so", told, 40, every=0.5)
        assert state(agent, vm) == "running"
    finally:
        agent.ask("power_off_vm", {"vm_id": vm.id})
        agent.host.start_sanlock()
    healed = lambda: agent.beat()["facts"]["leases_fault"] is None  # noqa: E731
    wait.until("the heartbeat to be well", healed, 40, every=0.5)


@pytest.mark.chaos
def test_without_sanlock_a_leased_vm_does_not_start(agents: Pair, vm: LeasedVm) -> None:
    agent = agents[0]
    agent.host.kill_sanlock()
    try:
        with pytest.raises(errors.LeasesUnfit, match="does not run"):
            start(agent, vm, 1)
    finally:
        agent.host.start_sanlock()
    assert start(agent, vm, 1)["state"] == "running"


@pytest.mark.chaos
def test_a_host_id_of_another_host_is_not_taken(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    wait_joined(first, vm)
    second.ask("leave_domain", {"domain": vm.domain})
    second.ask("join_domain", vm.lockspace(1))

    def told() -> bool:
        problem = lockspaces(second)[vm.domain["id"]]["problem"]
        return bool(problem) and first.host.id in problem

    wait.until("the holder of the host id", told, 180, every=0.5)
    with pytest.raises(errors.LockspaceNotJoined, match="the host id 1 belongs to another host"):
        start(second, vm, 1)
    second.ask("leave_domain", {"domain": vm.domain})


def test_a_process_that_is_given_no_lease_runs_no_command(agents: Pair, vm: LeasedVm) -> None:
    """The domain's lockspace is not joined here at all: on this machine's own, where no sanlock runs."""
    with pytest.raises(errors.LeaseFailed):
        under_lease.start(vm.domain, new_id(), 3 * MIB, ["touch", str(vm.xleases.with_name("ran"))])
    assert not vm.xleases.with_name("ran").exists()
