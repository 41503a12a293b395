"""Snapshots that a real guest agent quiesces: frozen around the switch only, and never left frozen by a death."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.guest import image
from deploy.stack import wait
from deploy.stack.host import Host
from tests.system.hostagent.lab import MIB, Agent, Vm, in_background, new_id

pytestmark = pytest.mark.lab


@pytest.fixture
def vm(agent: Agent, host: Host, folder: Path) -> Vm:
    """Running, its guest agent connected."""
    made = Vm(agent, folder, image.build(agent=image.AGENT))
    made.start()
    wait.until("the guest agent", lambda: frozen(host, made) is False, 90)
    return made


def guest_agent(host: Host, vm: Vm, command: str) -> str:
    """What the agent in the guest answers; "" when it does not."""
    asked = f'{{"execute": "{command}"}}'
    return host.run("virsh", "-q", "qemu-agent-command", vm.id, asked, "--timeout", "5", check=False)


def frozen(host: Host, vm: Vm) -> bool | None:
    said = guest_agent(host, vm, "guest-fsfreeze-status")
    return "frozen" in said if "return" in said else None


def request(agent: Agent, vm: Vm, quiesce: str = "required") -> dict[str, Any]:
    new = new_id()
    entry = {"disk": vm.disks[0], "volume_id": new, "parent_id": vm.volumes[0][-1]}
    agent.ask("create_volume", {**entry, "capacity": 256 * MIB})
    vm.volumes[0].append(new)
    return {"vm_id": vm.id, "disks": [entry], "quiesce": quiesce, "claim": vm.claim}


@pytest.mark.parametrize("quiesce", ["required", "auto"])
def test_a_snapshot_is_quiesced_and_the_guest_thawed(agent: Agent, host: Host, vm: Vm, quiesce: str) -> None:
    assert agent.ask("switch_leaves", request(agent, vm, quiesce))["quiesced"] is True
    assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]
    assert frozen(host, vm) is False
    assert agent.journal()["freezes"] == {}
    vm.writes_on()


@pytest.mark.parametrize("point", ["switch.after_freeze_journal", "switch.after_freeze", "switch.after_create"])
def test_a_guest_that_was_frozen_when_the_agent_died_is_thawed_by_the_next(
    agent: Agent, host: Host, vm: Vm, point: str
) -> None:
    wish = request(agent, vm)
    agent.crash_at(point)
    with in_background(agent.ask, "switch_leaves", wish):
        agent.wait_crashed()
    assert list(agent.journal()["freezes"]) == [vm.id]
    assert frozen(host, vm) is (point != "switch.after_freeze_journal")
    agent.start()
    wait.until("the thaw", lambda: agent.journal()["freezes"] == {} and frozen(host, vm) is False, 30)
    assert agent.ask("switch_leaves", wish)["live"] is True
    assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]
    vm.writes_on()
