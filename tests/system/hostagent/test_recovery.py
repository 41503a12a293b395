"""Whatever dies around a pivot: the guest runs on, the marks name one leaf, and it holds every acknowledged block."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import Agent, Vm, in_background

pytestmark = [pytest.mark.lab, pytest.mark.chaos]

PIVOT_POINTS = ["after_journal", "after_suspend", "after_ask", "after_pivot", "after_mark", "after_resume"]


def at_ready(vm: Vm) -> dict:
    """A snapshot whose active layer is copied: one step before the pivot."""
    vm.snapshot()
    vm.writes_on()
    request = vm.commit(0)
    vm.wait_ready()
    return request


def no_pause_is_left(agent: Agent) -> None:
    wait.until("the pause to be over", lambda: not agent.journal().get("pauses"), 60)


def settle(vm: Vm, request: dict) -> None:
    """Ask until the pivot is done, as the flow does."""
    limit = time.monotonic() + 60
    while True:
        assert time.monotonic() < limit, vm.look()
        with contextlib.suppress(errors.Problem):
            facts = vm.look()
            if facts["unsure"] is None and not facts["paused_by_pivot"]:
                if facts["qemu"]["chain"][0] == request["base_id"]:
                    return
                if facts["qemu"]["job"] is None:
                    vm.agent.ask("start_commit", {**request, "bandwidth": 0})
                    vm.wait_ready()
                vm.agent.ask("pivot", request)
        time.sleep(0.1)


def holds_everything(vm: Vm) -> None:
    vm.writes_on()
    vm.power_off()
    result = vm.check()
    assert result.ok, result.summary()


@pytest.mark.parametrize("point", ["start.before_ask", "start.after_ask", "start.after_settled"])
def test_a_start_in_which_the_agent_died_is_done_once(agent: Agent, make_vm: Callable[..., Vm], point: str) -> None:
    vm = make_vm()
    agent.crash_at(point)
    with in_background(agent.ask, "start_vm", vm.spec()):
        agent.wait_crashed()
    agent.start()
    assert agent.ask("start_vm", vm.spec())["state"] == "running"
    assert vm.look()["unsure"] is None
    vm.writes_on()
    vm.snapshot()
    holds_everything(vm)


@pytest.mark.parametrize("point", PIVOT_POINTS)
def test_an_agent_that_comes_back_to_its_own_pause_finishes_it(agent: Agent, vm: Vm, point: str) -> None:
    request = at_ready(vm)
    agent.crash_at(f"pivot.{point}")
    with in_background(agent.ask, "pivot", request):
        agent.wait_crashed()
    agent.start()
    no_pause_is_left(agent)
    vm.writes_on()
    settle(vm, request)
    assert vm.leaf() == request["base_id"]
    vm.finish(request)
    holds_everything(vm)


@pytest.mark.parametrize("point", PIVOT_POINTS)
def test_a_qemu_that_dies_in_a_pivot_leaves_one_leaf_with_all_blocks(agent: Agent, vm: Vm, point: str) -> None:
    request = at_ready(vm)
    agent.crash_at(f"pivot.{point}")
    with in_background(agent.ask, "pivot", request):
        agent.wait_crashed()
    os.kill(agent.host.qemu_pid(f"vm-{vm.id}"), signal.SIGKILL)
    agent.start()
    no_pause_is_left(agent)
    wait.until("the VM to be down", lambda: agent.ask("look_vm", {"vm_id": vm.id})["state"] == "down", 20)
    assert vm.leaf() in (request["base_id"], request["top_id"])
    assert vm.check().ok, vm.check().summary()
    vm.start()
    holds_everything(vm)


def test_libvirtd_killed_around_the_pivot_is_repaired_and_the_guest_undisturbed(agent: Agent, vm: Vm) -> None:
    """SIGKILL 0 to 50 ms after the pause was journalled: through suspend, the pivot (0 to 15 ms after it was asked
    for) and resume; ten times on one guest that is never restarted."""
    pid = agent.host.qemu_pid(f"vm-{vm.id}")
    for number in range(int(os.environ.get("DRYSTONE_KILLS", "10"))):
        request = at_ready(vm)
        kill_libvirtd_in_the_pivot(vm, request, delay=random.uniform(0, 0.05))  # noqa: S311
        agent.host.start_libvirtd()
        no_pause_is_left(agent)
        settle(vm, request)
        vm.writes_on()
        vm.finish(request)
        assert agent.host.qemu_pid(f"vm-{vm.id}") == pid, f"round {number}"
    print(f"{agent.log().count('libvirt was repaired')} repairs")
    holds_everything(vm)


def kill_libvirtd_in_the_pivot(vm: Vm, request: dict, delay: float) -> None:
    agent = vm.agent
    libvirtd = agent.host.libvirtd_pid()
    before = agent.place.journal.stat().st_mtime_ns
    with in_background(agent.ask, "pivot", request) as outcome:
        limit = time.monotonic() + 10
        while agent.place.journal.stat().st_mtime_ns == before and time.monotonic() < limit:
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(libvirtd, signal.SIGKILL)
        time.sleep(0.3)
        agent.host.start_libvirtd()
    print(f"killed after {delay * 1000:.1f} ms: {outcome.get('problem') or outcome.get('reply')}")
