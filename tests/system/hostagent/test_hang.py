"""A native call that hangs for a minute costs its caller an error, and nobody else anything."""

from collections.abc import Callable

import pytest

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import Agent, Vm, in_background

pytestmark = pytest.mark.lab


@pytest.mark.parametrize(("hang", "own_error"), [("snapshotCreateXML:60", True), ("switch_leaves:20", False)])
def test_a_call_that_hangs_stops_neither_heartbeats_nor_others(
    agent: Agent, make_vm: Callable[..., Vm], hang: str, own_error: bool
) -> None:
    first, second = make_vm(), make_vm()
    for vm in (first, second):
        vm.start()
    agent.kill()
    agent.env["DRYSTONE_TEST_HANG"] = hang
    agent.start()
    with in_background(first.snapshot) as outcome:
        wait.until("the call to hang", lambda: "hangs for a test" in agent.log(), 30)
        for _ in range(5):
            assert len(agent.beat()["vms"]) == 2
            second.look()
        second.snapshot()
        assert not outcome  # it hangs still
    assert isinstance(outcome.get("problem"), errors.HypervisorAway) is own_error
