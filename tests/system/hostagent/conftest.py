"""One host, its hypervisor process, and VMs on it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.guest import image
from deploy.stack.host import Host
from tests.system.hostagent.lab import Agent, Vm


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
