"""A libvirtd that lost its VM or names another leaf than QEMU writes to is repaired; the guest notices nothing."""

import asyncio
import dataclasses
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import Agent, Vm

pytestmark = pytest.mark.lab


def complete_behind_libvirts_back(agent: Agent, vm: Vm) -> None:
    """libvirtd is dead; over the socket that was its own QEMU is told to pivot, as if it had died a moment later."""
    (socket,) = Path(agent.host.folder / "lib/qemu").glob(f"domain-*-vm-{vm.id[:10]}*/monitor.sock")

    async def complete() -> None:
        client = QMPClient()
        await client.connect(str(socket))
        jobs: Any = await client.execute("query-jobs")
        await client.execute("block-job-complete", {"device": jobs[0]["id"]})
        while jobs[0]["status"] != "concluded":
            jobs = await client.execute("query-jobs")
            await asyncio.sleep(0.02)
        await client.disconnect()

    asyncio.run(complete())


def kill_libvirtd(agent: Agent) -> None:
    os.kill(agent.host.libvirtd_pid(), signal.SIGKILL)


def status_file(agent: Agent, vm: Vm) -> Path:
    return agent.host.room.inside(f"/run/libvirt/qemu/vm-{vm.id}.xml")


def at_ready(vm: Vm) -> dict[str, Any]:
    vm.snapshot()
    vm.writes_on()
    request = vm.commit(0)
    vm.wait_ready()
    return request


def libvirt_is_right_again(vm: Vm, request: dict[str, Any]) -> None:
    """The next snapshot, commits and a pivot work, and all that was acknowledged is there."""

    def sure() -> bool:
        facts = vm.look()
        return facts["unsure"] is None and facts["libvirt"]["chain"] == facts["qemu"]["chain"]

    wait.until("libvirt to agree", sure, 60)
    vm.agent.ask("pivot", request)
    vm.finish(request)
    vm.snapshot()
    vm.snapshot()
    vm.writes_on()
    vm.wait_merged(internal := vm.commit(0))
    vm.finish(internal)
    active = vm.commit(0)
    vm.wait_ready()
    vm.agent.ask("pivot", active)
    vm.writes_on()
    vm.finish(active)
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_a_vm_that_libvirtd_refuses_to_load_is_given_back_to_it(agent: Agent, vm: Vm) -> None:
    request = at_ready(vm)
    pid = agent.host.qemu_pid(f"vm-{vm.id}")
    kill_libvirtd(agent)
    complete_behind_libvirts_back(agent, vm)
    text = status_file(agent, vm).read_text()
    damaged = re.sub(r"<mirror ([^>]*)job='active-commit'( ready='yes')?", r"<mirror \1job=''", text)
    assert damaged != text
    status_file(agent, vm).write_text(damaged)
    agent.host.start_libvirtd()
    libvirt_is_right_again(vm, request)
    assert "libvirt was repaired" in agent.log()
    assert pid


def test_a_stop_that_says_that_it_failed_leaves_no_libvirtd_stopped(agent: Agent, vm: Vm) -> None:
    vm.snapshot()
    agent.kill()
    stop = ("sh", "-c", f"{' '.join(agent.place.libvirt_stop)}; echo no >&2; exit 1")
    agent.place = dataclasses.replace(agent.place, libvirt_stop=stop)
    kill_libvirtd(agent)
    text = status_file(agent, vm).read_text()
    status_file(agent, vm).write_text(text.replace("<domain ", "<nothing ", 1).replace("</domain>", "</nothing>", 1))
    agent.host.start_libvirtd()
    agent.start()
    wait.until("the repair to fail", lambda: "the repair did not work" in agent.log(), 60)
    wait.until("libvirtd", lambda: agent.ask("look_vm", {"vm_id": vm.id})["reason"].endswith("(absent)"), 30)
    assert not agent.journal()["repairs"]
    assert agent.host.libvirtd_pid()


@pytest.mark.chaos
@pytest.mark.parametrize("point", ["repair.after_stop", "repair.before_start"])
def test_a_repair_in_which_the_agent_dies_is_finished_by_the_next_one(agent: Agent, vm: Vm, point: str) -> None:
    request = at_ready(vm)
    kill_libvirtd(agent)
    complete_behind_libvirts_back(agent, vm)
    text = status_file(agent, vm).read_text()
    status_file(agent, vm).write_text(re.sub(r"<mirror ([^>]*)job='active-commit'", r"<mirror \1job=''", text))
    agent.crash_at(point)
    agent.host.start_libvirtd()
    agent.wait_crashed()
    agent.start()
    libvirt_is_right_again(vm, request)


@pytest.mark.chaos
def test_an_xml_that_names_the_old_top_is_put_right(agent: Agent, vm: Vm) -> None:
    request = at_ready(vm)
    kill_libvirtd(agent)
    complete_behind_libvirts_back(agent, vm)
    text = status_file(agent, vm).read_text()
    forgotten = re.sub(r"<mirror .*?</mirror>|<blockjob .*?</blockjob>", "", text, flags=re.DOTALL)
    status_file(agent, vm).write_text(forgotten)
    agent.host.start_libvirtd()
    libvirt_is_right_again(vm, request)


@pytest.mark.chaos
def test_nothing_is_started_or_deleted_while_libvirt_has_lost_a_vm(agent: Agent, vm: Vm) -> None:
    """'not found' never means stopped: with a repair that cannot work every dangerous ask is refused."""
    vm.snapshot()
    kill_libvirtd(agent)
    good = status_file(agent, vm).read_text()
    status_file(agent, vm).write_text("<domstatus/>")
    agent.host.start_libvirtd()
    wait.until("libvirt to be back", lambda: agent.beat()["problem"] is None, 30)
    for method, request in (
        ("start_vm", vm.spec()),
        ("power_off_vm", {"vm_id": vm.id}),
        ("start_commit", {**vm.merge(0), "bandwidth": 0}),
        ("discard_volume", {"vm_id": vm.id, "disk": vm.disks[0], "volume_id": vm.volumes[0][0], "claim": vm.claim}),
    ):
        with pytest.raises((errors.VmUnsure, errors.HypervisorAway, errors.DiskBusy)):
            agent.ask(method, request, 90)
    facts = vm.look()
    assert facts["qemu"]["state"] == "running"
    assert facts["unsure"]
    assert facts["storage"]["leaf"] == vm.volumes[0][-1]
    vm.writes_on()
    agent.host.stop_libvirtd()
    status_file(agent, vm).write_text(good)
    agent.host.start_libvirtd()
    wait.until("the VM to be sure again", lambda: vm.look()["unsure"] is None, 60)
