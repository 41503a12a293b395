"""Who watches news live, and answers that make no sense: in a process of its own, as green as a gateway."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.process import ROOT
from tests.fakes.services import promises
from tests.service.chassis.test_bus_events import wait_until

WATCHER = """
from chassis import bus
import sys
from tests.fakes.services import promises
def heard(event, news, note):
    print(event.name, news["number"], note.key, note.call.user, flush=True)
    if news["number"] == 99:
        end.put("last")
client = bus.Client(sys.argv[1], "watcher")
end = bus.Box()
ear = client.subscribe([promises.said, promises.beat], heard, lambda: print("gap", flush=True))
print("listens" if ear.ready.wait(60) else "deaf", flush=True)
end.get(240)
client.close()
"""

READER = """
from chassis import bus_client
from contracts import errors
from tests.fakes.services import promises
bodies = [
    "no json", "[]", "{}", '{"result": {"ok": {"text": 7}}}', '{"result": {"error": {"code": "not_found"}}}',
    '{"result": {"error": {"code": "disk_busy", "fields": {"disk_id": "d", "flow_id": "f"}}}}',
]
for body in bodies:
    try:
        bus_client.opened(promises.fail, body)
    except errors.Problem as problem:
        print(problem.code, problem.fields.get("correlation_id", ""))
"""


class Watcher:
    def __init__(self, uri: str, folder: pathlib.Path) -> None:
        self._out = folder / "heard"
        with self._out.open("wb") as out:
            self.process = subprocess.Popen([sys.executable, "-c", WATCHER, uri], stdout=out, cwd=ROOT, env=os.environ)

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines()


@pytest.fixture
def watcher(rabbit: Broker, tmp_path: pathlib.Path) -> Iterator[Watcher]:
    made = Watcher(rabbit.uri, tmp_path)
    wait_until(lambda: made.lines == ["listens"])
    yield made
    made.process.kill()
    made.process.wait(60)


def test_a_watcher_hears_news_of_every_key_and_not_what_breaks_its_promise(watcher: Watcher, bus: Bus) -> None:
    bus.tell(promises.said, {"text": "x", "number": 1})
    bus.tell_anything(promises.said, {"text": "no number"})
    bus.tell_anything(promises.said, "no object")
    bus.tell(promises.beat, {"host_id": "h1", "number": 99}, key="h1")
    assert watcher.process.wait(60) == 0
    assert [line.split()[:3] for line in watcher.lines[1:]] == [["said", "1", "None"], ["beat", "99", "h1"]]


def test_a_watcher_is_told_that_it_may_have_missed_news(watcher: Watcher, bus: Bus, rabbit: Broker) -> None:
    rabbit.kill()
    rabbit.start()
    wait_until(lambda: watcher.lines == ["listens", "gap"])
    bus.tell(promises.said, {"text": "x", "number": 99})
    assert watcher.process.wait(60) == 0


def test_answers_that_make_no_sense_are_internal_errors() -> None:
    done = subprocess.run(
        [sys.executable, "-c", READER], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert [line for line in done.stdout.splitlines() if "a reply breaks its promise" not in line] == [
        "internal_error leaf-garbled",
        "internal_error leaf-garbled",
        "internal_error nothing",
        "internal_error leaf-broken-reply",
        "internal_error leaf-not_found",
        "disk_busy ",
    ]


LIMITED = """
import contextlib
from chassis import bus_green as green
tries = []
try:
    with green.Limit(0.1):
        while len(tries) < 3:
            with contextlib.suppress(OSError):  # as kombu does with lost connections; a TimeoutError is one
                tries.append(1)
                green.sleep(5)
except TimeoutError as fault:
    print(len(tries), fault)
with green.Limit(0.1) as cancelled:
    cancelled.cancel()
    green.sleep(0.3)
print("goes on")
"""


def test_a_limit_is_not_swallowed_by_what_tries_again() -> None:
    ran = subprocess.run([sys.executable, "-c", LIMITED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["1 no answer within 0.1 s", "goes on"]
