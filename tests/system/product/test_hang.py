"""A native call that hangs for 60 s on a host: no heartbeat is missed, nothing comes twice, others are served."""

import contextlib
import datetime
import itertools
import time
from typing import Any

import pytest

from contracts import hostagent, inventory
from deploy.stack import wait
from deploy.stack.stack import Stack
from deploy.world import World
from tests.fakes.bus import Bus
from tests.system.product import deaths

pytestmark = pytest.mark.lab
HANG = 60  # seconds
BEAT = 5.0  # seconds between two heartbeats, as installed


def assert_none_was_skipped(beats: list[dict[str, Any]], began: float, seconds: float) -> None:
    """As many heartbeats were made as the time holds, and nowhere is a gap in which one is missing. A beat may come
    late on a slow machine, but never so late that the next one was due."""
    ends = began + seconds
    made = [datetime.datetime.fromisoformat(beat["clock"]).timestamp() for beat in beats]
    within = [moment for moment in made if began <= moment <= ends]
    gaps = [later - earlier for earlier, later in itertools.pairwise([began, *within, ends])]
    assert max(gaps) < 2 * BEAT, gaps
    assert len(within) >= seconds / BEAT - 1, within


def test_a_call_that_hangs_for_a_minute_costs_nobody_else_anything() -> None:
    hanging = {"DRYSTONE_TEST_HANG": f"snapshotCreateXML:{HANG}"}
    with (
        Stack(settings=hanging) as stack,
        contextlib.closing(World.of(stack)) as world,
        Bus(stack.rabbitmq.uri) as bus,
    ):
        first, second = (world.machine(name, ring_mib=16, rate_kib=1024) for name in ("hangs", "goes-on"))
        first.start()
        second.start()
        heard = bus.expect(hostagent.heartbeat)
        hosts = bus.expect(inventory.host_changed)
        job = first.api.create_snapshot(first.id, {"description": "hangs"})
        agent = stack.process("h1.agent")
        wait.until("the call to hang", lambda: "hangs for a test" in agent.log.read_text(), 30)
        began, limit = time.time(), time.monotonic() + HANG
        served = 0
        while time.monotonic() < limit:
            second.remove(second.snapshot("beside"))
            served += 1
        beats = list(heard.news)
        assert served > 1
        assert len({beat["agent_id"] for beat in beats}) == 1
        numbers = [beat["sequence"] for beat in beats]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert_none_was_skipped(beats, began, HANG)
        assert {host["state"] for host in hosts.news} <= {"up"}  # none was late enough to be missed
        assert deaths.end_of(first, job["id"])["state"] == "done"
        assert agent.log.read_text().count("hangs for a test") == 1
        deaths.assert_whole(first, snapshots=1)
        deaths.assert_whole(second, snapshots=0)
