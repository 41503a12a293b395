"""The stack of demo and tests: every part of it can be hurt and comes back, and nothing stays behind."""

import os
import tempfile
from pathlib import Path

import pytest

from deploy.stack import proc, wait
from deploy.stack.stack import Stack

pytestmark = pytest.mark.lab


def pids_of(stack: Stack) -> list[int]:
    """Every process of the stack, found by the folder in its command line or environment."""
    mine = str(stack.folder).encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                int(folder.name) != os.getpid()
                and mine in (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", ["inventory", "snapshots", "gateway", "h1.agent"])
def test_a_process_that_was_killed_is_ready_again(stack: Stack, name: str) -> None:
    before = stack.process(name).pid
    stack.kill(name)
    assert not stack.process(name).alive()
    stack.start_part(name)
    assert stack.process(name).ready()
    assert stack.process(name).pid != before


def test_everything_is_ready_again_after_the_broker_was_killed(stack: Stack) -> None:
    stack.kill("rabbitmq")
    stack.start_part("rabbitmq")
    for process in [*stack.services.values(), *stack.agents.values()]:
        try:
            wait.until(f"{process.name} to be ready", process.ready, 60)
        except wait.NotInTime as late:
            raise AssertionError(f"{late}; it says {process.health()}") from late


def test_a_host_that_lost_its_power_comes_back_with_its_agent(stack: Stack) -> None:
    stack.kill("h1")
    assert not stack.process("h1.agent").alive()
    stack.start_part("h1")
    stack.start_part("h1.agent")
    assert stack.hosts["h1"].virsh("list").strip() == ""


def test_an_unknown_part_is_answered_with_the_names_there_are(stack: Stack) -> None:
    with pytest.raises(KeyError, match=r"gateway, h1, h1\.agent, h1\.libvirtd, inventory, rabbitmq, snapshots"):
        stack.kill("nobody")


def test_nothing_is_left_behind() -> None:
    with Stack(Path(tempfile.mkdtemp(prefix="ds-"))) as stack:
        pids = pids_of(stack)
        assert len(pids) > 5
    assert not stack.folder.exists()
    assert str(stack.folder) not in Path("/proc/mounts").read_text()
    assert [pid for pid in pids if proc.state(pid) not in ("", "Z")] == []


def test_a_process_that_cannot_start_is_named_with_the_end_of_its_log(folder: Path) -> None:
    stack = Stack(folder / "s", services=("inventory",), agents=False, settings={"DRYSTONE_FLOW_LEASE": "never"})
    with pytest.raises(wait.NotInTime, match=r"(?s)inventory ended by itself.*flow_lease.*must be a number"):
        stack.start()
    assert pids_of(stack) == []
