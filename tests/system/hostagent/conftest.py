"""One host, its hypervisor process, and VMs on it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.guest import image
from deploy.stack.host import Host
from tests.system.hostagent.lab import Agent, Vm
from tests.system.hostagent.leased import LeasedVm, wait_joined


@pytest.fixture
def agent(host: Host) -> Iterator[Agent]:
    made = Agent(host)
    made.start()
    yield made
    made.caller.close()


@pytest.fixture
def make_vm(agent: Agent, folder: Path, guest: image.Image) -> Callable[..., Vm]:
    return lambda **wishes: Vm(agent, folder, guest, **wishes)


@pytest.fixture
def vm(make_vm: Callable[..., Vm]) -> Vm:
    """Running, with one volume."""
    made = make_vm()
    made.start()
    return made


@pytest.fixture(scope="module")
def agents() -> Iterator[tuple[Agent, Agent]]:
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
def leased_vm(agents: tuple[Agent, Agent], folder: Path, guest: image.Image) -> Iterator[LeasedVm]:
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
