"""Leases of VMs where sanlock, libvirtd, the agent or a writer of leases dies, or was set up while it ran."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import MIB, Agent, Vm, in_background
from tests.system.hostagent.leased import LeasedVm, lockspaces, start, state, wait_joined, write_offline

pytestmark = [pytest.mark.lab, pytest.mark.chaos]
Pair = tuple[Agent, Agent]


@pytest.fixture
def vm(leased_vm: LeasedVm) -> LeasedVm:
    return leased_vm


def complaint(agent: Agent) -> str | None:
    """What the heartbeat says against this host's leases."""
    told: str | None = agent.beat()["facts"]["leases_fault"]
    return told


def test_the_lease_is_free_when_qemu_was_killed(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    start(first, vm, 1)
    os.kill(first.host.qemu_pid(f"vm-{vm.id}"), signal.SIGKILL)
    wait.until("the end of the VM", lambda: state(first, vm) == "down", 30)
    assert start(second, vm, 2)["state"] == "running"


def test_a_host_that_lost_its_power_starts_its_vm_again(agents: Pair, vm: LeasedVm) -> None:
    """The lease still names it, under the generation that it had before."""
    first, second = agents
    start(first, vm, 1)
    first.caller.close()
    first.host.end()
    with pytest.raises(errors.LeaseHeld, match="host number 1"):
        start(second, vm, 2)
    first.host.start()
    first.start()
    assert start(first, vm, 1)["state"] == "running"


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


@pytest.mark.parametrize("point", ["lease.after_resource", "lease.after_record"])
def test_a_lease_whose_writer_died_is_finished_by_the_next_start(agents: Pair, vm: LeasedVm, point: str) -> None:
    first, _ = agents
    first.crash_at(point)
    with pytest.raises(errors.LeaseFailed, match="its writer ended with -9"):
        start(first, vm, 1)
    assert start(first, vm, 1)["state"] == "running"
    assert vm.xleases.read_bytes()[MIB : 2 * MIB].count(vm.id.encode()) == 1


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


def test_a_pause_that_was_written_down_but_not_begun_ends_when_sanlock_is_gone(agents: Pair, vm: LeasedVm) -> None:
    first, _ = agents
    start(first, vm, 1)
    vm.snapshot()
    request = vm.commit(0)
    vm.wait_ready()
    first.crash_at("pivot.after_journal")
    with in_background(first.ask, "pivot", request):
        first.wait_crashed()
    first.host.kill_sanlock()
    try:
        first.start()
        wait.until("the end of the pause", lambda: not first.journal().get("pauses"), 60)
        vm.writes_on()
        qemu = vm.look()["qemu"]
        assert (qemu["job"], qemu["chain"][0]) == (None, request["top_id"])
    finally:
        first.ask("power_off_vm", {"vm_id": vm.id})
        first.host.start_sanlock()


def test_a_pivot_waits_for_a_sanlock_that_stood_still(agents: Pair, vm: LeasedVm) -> None:
    first, _ = agents
    start(first, vm, 1)
    vm.snapshot()
    request = vm.commit(0)
    vm.wait_ready()
    sanlock = first.host.sanlock
    assert sanlock is not None
    sanlock.signal(signal.SIGSTOP)
    with in_background(first.ask, "pivot", request) as pivoting:
        time.sleep(2)
        sanlock.signal(signal.SIGCONT)
    assert "reply" in pivoting, pivoting
    vm.writes_on()
    assert vm.look()["qemu"]["chain"][0] == request["base_id"]


def test_a_lease_that_is_dropped_while_its_vm_starts_ends_the_start(agents: Pair, vm: LeasedVm) -> None:
    """Its record is gone: another start would make another lease, and both VMs would run."""
    first, second = agents
    start(first, vm, 1)
    first.ask("power_off_vm", {"vm_id": vm.id})
    begun, go, hook = vm.xleases.with_name("hooked"), vm.xleases.with_name("dropped"), hook_of(first)
    shell = f'[ "$2" = prepare ] || exit 0; touch {begun}; until [ -e {go} ]; do sleep 0.1; done'
    hook.write_text(f"#!/bin/sh\n{shell}\n")
    hook.chmod(0o755)
    restart_libvirtd(first)
    try:
        with in_background(start, first, vm, 1) as starting:
            wait.until("the start", begun.exists, 30)
            second.ask("drop_lease", {"vm_id": vm.id, "domain": vm.domain})
            go.touch()
    finally:
        hook.unlink()
        restart_libvirtd(first)
    assert "dropped while the VM was started" in str(starting["problem"])
    wait.until("the end of the VM", lambda: state(first, vm) == "down", 30)
    assert start(second, vm, 2)["state"] == "running"


def hook_of(agent: Agent) -> Path:
    """The script that libvirt runs before QEMU; it looks for it when it starts."""
    path = agent.host.folder / "etc/hooks/qemu"
    path.parent.mkdir(exist_ok=True)
    return path


def restart_libvirtd(agent: Agent) -> None:
    agent.host.stop_libvirtd()
    agent.host.start_libvirtd()
    wait.until("libvirt", lambda: agent.beat()["problem"] is None, 30)


def stop_behind_libvirts_back(agent: Agent, vm: Vm) -> None:
    """libvirtd is dead; over the socket that was its own the guest is stopped, its lease stays."""
    (socket,) = Path(agent.host.folder / "lib/qemu").glob(f"domain-*-vm-{vm.id[:10]}*/monitor.sock")

    async def stop() -> None:
        client = QMPClient()
        await client.connect(str(socket))
        await client.execute("stop")
        await client.disconnect()

    asyncio.run(stop())


def test_a_libvirtd_that_has_not_read_its_file_gets_no_vm(agents: Pair, vm: LeasedVm) -> None:
    """The files are right, but the running libvirtd takes no leases: the guest is ended at once."""
    agent = agents[0]
    path = agent.host.folder / "etc/qemu.conf"
    good = path.read_text()
    path.write_text(good.replace('lock_manager = "sanlock"', ""))
    restart_libvirtd(agent)
    path.write_text(good)
    try:
        with pytest.raises(errors.LeaseNotTaken):
            start(agent, vm, 1)
        assert state(agent, vm) == "down"
    finally:
        restart_libvirtd(agent)
    assert start(agent, vm, 1)["state"] == "running"


def test_a_sanlock_that_dies_under_a_running_vm_is_told(agents: Pair, vm: LeasedVm) -> None:
    agent = agents[0]
    start(agent, vm, 1)
    assert agent.beat()["facts"]["leases_fault"] is None
    agent.host.kill_sanlock()
    try:
        wait.until("the heartbeat to say so", lambda: vm.id in (complaint(agent) or ""), 40, every=0.5)
        assert state(agent, vm) == "running"
    finally:
        agent.ask("power_off_vm", {"vm_id": vm.id})
        agent.host.start_sanlock()
    wait.until("the heartbeat to be well", lambda: complaint(agent) is None, 40, every=0.5)


def test_without_sanlock_a_leased_vm_does_not_start(agents: Pair, vm: LeasedVm) -> None:
    agent = agents[0]
    agent.host.kill_sanlock()
    try:
        with pytest.raises(errors.LeasesUnfit, match="does not run"):
            start(agent, vm, 1)
    finally:
        agent.host.start_sanlock()
    assert start(agent, vm, 1)["state"] == "running"


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
