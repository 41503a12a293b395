"""A libvirt whose statistics and XML come late: its daemon stands still while QEMU goes on, and is asked in the very
moment in which it goes on too. What it says then is from before."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import MIB, Agent, Vm, in_background
from tests.system.hostagent.test_recovery import at_ready, holds_everything, no_pause_is_left, settle

pytestmark = [pytest.mark.lab, pytest.mark.chaos]


@contextlib.contextmanager
def late(agent: Agent) -> Iterator[None]:
    """libvirtd stands still."""
    libvirtd = agent.host.libvirtd_pid()
    os.kill(libvirtd, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(libvirtd, signal.SIGCONT)


def until_taken(ask: Callable[[], Any], seconds: float = 60) -> list[errors.Problem]:
    """Ask without a rest until it is not refused; answers the refusals."""
    limit, refused = time.monotonic() + seconds, []
    while True:
        try:
            ask()
        except errors.Problem as problem:
            refused.append(problem)
        else:
            return refused
        assert time.monotonic() < limit, refused[-1]


def qemus_job(vm: Vm) -> dict[str, Any] | None:
    """By QEMU alone."""
    job: dict[str, Any] | None = vm.look()["qemu"]["job"]
    return job


def copying(make_vm: Callable[..., Vm], layers: int) -> tuple[Vm, dict[str, Any]]:
    """The lowest layer of so many is being copied, faster than its guest writes, and has some seconds to go."""
    vm = make_vm(rate_kib=512, order="sequential")
    vm.start()
    for _ in range(layers):
        vm.snapshot()
        vm.writes_on(1024)
    request = vm.commit(0, bandwidth=MIB)
    wait.until("some progress", lambda: (qemus_job(vm) or {"cur": 0})["cur"] > 0)
    return vm, request


def test_an_internal_merge_that_ended_meanwhile_is_recorded_once_all_agree(
    agent: Agent, make_vm: Callable[..., Vm]
) -> None:
    vm, request = copying(make_vm, layers=2)
    with late(agent):
        wait.until("QEMU to end it", lambda: qemus_job(vm) is None, 60)
        with pytest.raises((errors.HypervisorAway, errors.VmUnsure)):
            agent.ask("record_merge", request)
    until_taken(lambda: agent.ask("record_merge", request))
    facts = vm.look()
    assert (facts["unsure"], facts["libvirt"]["chain"]) == (None, facts["qemu"]["chain"])
    assert request["top_id"] not in facts["qemu"]["chain"]
    vm.finish(request)
    holds_everything(vm)


def test_a_mirror_that_got_ready_meanwhile_is_pivoted_once_libvirt_has_seen_it(
    agent: Agent, make_vm: Callable[..., Vm]
) -> None:
    vm, request = copying(make_vm, layers=1)
    with late(agent):
        wait.until("QEMU's mirror to be ready", lambda: (qemus_job(vm) or {"ready": False})["ready"], 60)
        with pytest.raises((errors.HypervisorAway, errors.VmUnsure)):
            agent.ask("pivot", request)
    until_taken(lambda: agent.ask("pivot", request))
    no_pause_is_left(agent)
    settle(vm, request)
    vm.finish(request)
    holds_everything(vm)


@pytest.mark.parametrize("after", [0.0, 0.01, 0.02], ids=["0 ms", "10 ms", "20 ms"])
def test_a_pivot_in_which_libvirt_stands_still_is_gone_through_with(agent: Agent, vm: Vm, after: float) -> None:
    """Its XML names the old volume for as long: the guest stands still, or runs on what the marks name."""
    request = at_ready(vm)
    before = agent.place.journal.stat().st_mtime_ns
    with in_background(agent.ask, "pivot", request) as outcome:
        wait.until("the pause", lambda: agent.place.journal.stat().st_mtime_ns != before, 10, every=0.0005)
        time.sleep(after)
        with late(agent):
            time.sleep(3)
    print(outcome.get("problem") or outcome.get("reply"))
    no_pause_is_left(agent)
    settle(vm, request)
    assert vm.leaf() == request["base_id"]
    vm.finish(request)
    holds_everything(vm)
