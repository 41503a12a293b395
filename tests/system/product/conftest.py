"""A furnished stack for a whole module: what one test hurts it has to heal."""

import contextlib
import uuid
from collections.abc import Callable, Iterator

import pytest

from deploy.stack.stack import Stack
from deploy.world import Machine, World


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from furnished(request, Stack())


@pytest.fixture(scope="module")
def two_hosts_world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from furnished(request, Stack(hosts=2))


def furnished(request: pytest.FixtureRequest, stack: Stack) -> Iterator[World]:
    """After a failed test its folder stays, with all logs."""
    before, made = request.session.testsfailed, False
    stack.start()
    try:
        with contextlib.closing(World.of(stack)) as world:
            made = True
            yield world
    finally:
        failed = not made or request.session.testsfailed > before
        stack.end(remove=not failed)
        if failed:
            print(f"logs: {stack.folder}/*/log")


@pytest.fixture
def writing_vm(world: World) -> Iterator[Callable[..., Machine]]:
    """Makes VMs whose guests write; deleted at the end of the test."""
    made: list[Machine] = []

    def make(**options: object) -> Machine:
        vm = world.machine(f"vm-{uuid.uuid4().hex[:8]}", **{"ring_mib": 16, "rate_kib": 4096, **options})  # type: ignore[arg-type]
        made.append(vm)
        vm.start()
        return vm

    yield make
    for vm in made:
        if vm.state() != "down":
            vm.power_off()
        world.api.vms.delete(vm.id, world.api.vms.get(vm.id)["version"])
