"""A snapshot that cannot be taken as it was asked for leaves nothing behind, on real QEMU."""

from collections.abc import Callable

import pytest

from deploy.world import Machine
from tests.system.product import deaths

pytestmark = pytest.mark.lab


def test_a_freeze_that_was_demanded_and_cannot_be_had_leaves_nothing(writing_vm: Callable[..., Machine]) -> None:
    vm = writing_vm(disks=2)
    job = vm.api.create_snapshot(vm.id, {"description": "frozen", "quiesce": "required"})
    ended = deaths.end_of(vm, job["id"])
    assert (ended["state"], ended["reason"]["code"]) == ("undone", "quiesce_failed")
    deaths.assert_whole(vm, snapshots=0)
    vm.remove(vm.snapshot("without"))
    deaths.assert_whole(vm, snapshots=0)
