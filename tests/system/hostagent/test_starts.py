"""Starts of VMs with leases that go wrong between the launch and the moment at which the guest may run."""

from __future__ import annotations

import os
import signal

import pytest

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import Agent, in_background
from tests.system.hostagent.leased import LeasedVm, hanging, start, state, write_offline

pytestmark = pytest.mark.lab
Pair = tuple[Agent, Agent]


def test_a_writer_that_comes_and_goes_after_the_last_look_is_noticed(agents: Pair, leased_vm: LeasedVm) -> None:
    """Where no image lock reaches the other host, the version of the lease is all that tells."""
    second = agents[1]
    with hanging(second, leased_vm, "resume:6"):
        with in_background(start, second, leased_vm, 2) as starting:
            wait.until("the resume", lambda: "resume hangs for a test" in second.log(), 30)
            assert write_offline(agents[0], leased_vm, "true") == "0"
        assert isinstance(starting["problem"], errors.ChainDiffers), starting
        assert state(second, leased_vm) == "down"
        assert not second.journal()["openings"]
    assert start(second, leased_vm, 2)["state"] == "running"


@pytest.mark.parametrize("point", ["start.after_settled", "start.before_resume", "start.after_resume"])
def test_a_start_goes_on_by_itself_when_its_agent_is_back(agents: Pair, leased_vm: LeasedVm, point: str) -> None:
    agent = died_in_a_start(agents[0], leased_vm, point)
    _wait_for_the_guest(agent, leased_vm)
    leased_vm.writes_on()
    assert start(agent, leased_vm, 1)["state"] == "running"
    leased_vm.power_off()
    assert leased_vm.check().ok, leased_vm.check().summary()


@pytest.mark.parametrize("point", ["start.after_ask", "start.before_resume"])
def test_a_start_that_is_asked_again_is_done_once(agents: Pair, leased_vm: LeasedVm, point: str) -> None:
    agent = died_in_a_start(agents[0], leased_vm, point)
    assert start(agent, leased_vm, 1)["state"] == "running"
    assert not agent.journal()["openings"]
    leased_vm.writes_on()
    leased_vm.power_off()
    assert leased_vm.check().ok, leased_vm.check().summary()


def test_a_start_in_which_libvirtd_died_goes_on_by_itself(agents: Pair, leased_vm: LeasedVm) -> None:
    agent = agents[0]
    with hanging(agent, leased_vm, "resume:4"):
        with in_background(start, agent, leased_vm, 1) as starting:
            wait.until("the resume", lambda: "resume hangs for a test" in agent.log(), 30)
            os.kill(agent.host.libvirtd_pid(), signal.SIGKILL)
        assert isinstance(starting["problem"], errors.HypervisorAway), starting
        agent.host.start_libvirtd()
        _wait_for_the_guest(agent, leased_vm)
    leased_vm.writes_on()
    leased_vm.power_off()
    assert leased_vm.check().ok, leased_vm.check().summary()


def died_in_a_start(agent: Agent, leased_vm: LeasedVm, point: str) -> Agent:
    """It is back, and nobody has asked again."""
    agent.crash_at(point)
    with in_background(start, agent, leased_vm, 1):
        agent.wait_crashed()
    agent.start()
    return agent


def _wait_for_the_guest(agent: Agent, leased_vm: LeasedVm) -> None:
    def done() -> bool:
        agent.beat()
        return state(agent, leased_vm) == "running" and not agent.journal()["openings"]

    wait.until("the guest to run", done, 60)
