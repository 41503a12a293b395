"""A furnished stack for a whole module: what one test hurts it has to heal."""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from deploy.stack.stack import Stack
from deploy.world import Machine, World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Stack() as stack, contextlib.closing(World.of(stack)) as furnished:
        yield furnished


@pytest.fixture(scope="module")
def two_hosts_world() -> Iterator[World]:
    with Stack(hosts=2) as stack, contextlib.closing(World.of(stack)) as furnished:
        yield furnished


@pytest.fixture
def writing_vm(world: World) -> Iterator[Callable[..., Machine]]:
    """Makes VMs whose guests write; deleted at the end of the test."""
    made: list[Machine] = []
    numbers = itertools.count(len(world.machines) + 1)

    def make(**options: object) -> Machine:
        vm = world.machine(f"vm{next(numbers)}", **{"ring_mib": 16, "rate_kib": 4096, **options})  # type: ignore[arg-type]
        made.append(vm)
        vm.start()
        return vm

    yield make
    for vm in made:
        if vm.state() != "down":
            vm.power_off()
        world.api.vms.delete(vm.id, world.api.vms.get(vm.id)["version"])
