"""The files behind QEMU's nodes are asked for only while no block stream can end: QEMU 7.2 dies of it otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from services.hostagent import nodefiles
from services.hostagent.nodefiles import NodeFiles, Question

NAMED = "query-named-block-nodes"
FILES = {"libvirt-1-storage": "/a", "libvirt-1-format": "/a"}


class Refused(Exception):
    pass


class Monitor:
    """A QEMU with some streams, by id. One that is asked to pause does so `after` so many looks."""

    def __init__(self, after: int = 1, **streams: str) -> None:
        self.jobs, self.after, self.asked = streams, after, list[str]()

    async def __call__(self, questions: Sequence[Question]) -> list[Any]:
        return [self._answer(command, arguments or {}) for command, arguments in questions]

    def _answer(self, command: str, arguments: dict[str, Any]) -> Any:
        self.asked.append(command)
        if command == NAMED:
            assert set(self.jobs.values()) <= {"paused"}, "QEMU would have died of it"
            return [{"node-name": name, "file": file} for name, file in FILES.items()]
        if command == "query-jobs":
            self.after -= 1
            turned = {"pausing": "paused"} if self.after <= 0 else {}
            self.jobs = {id_: turned.get(status, status) for id_, status in self.jobs.items()}
            shown = {id_: status.replace("pausing", "running") for id_, status in self.jobs.items()}
            return [{"id": id_, "type": "stream", "status": status} for id_, status in shown.items()]
        wanted, becomes = {"job-pause": ("running", "pausing"), "job-resume": ("paused", "running")}[command]
        if self.jobs.get(arguments["id"]) != wanted:
            raise Refused
        self.jobs[arguments["id"]] = becomes
        return {}


def graph(*names: str) -> dict[str, Any]:
    return {"nodes": [{"name": name, "type": "block-driver", "id": at} for at, name in enumerate(names)]}


ALL = graph(*FILES, "#block068")


def now(files: NodeFiles, monitor: Monitor, seen: Any = ALL) -> nodefiles.Files:
    return asyncio.run(files.now("vm", monitor, seen))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodefiles, "AGAIN", 0.0)


def test_without_a_stream_they_are_asked_for_each_time() -> None:
    files, monitor = NodeFiles(Refused), Monitor()
    assert now(files, monitor) == now(files, monitor) == FILES
    assert monitor.asked.count(NAMED) == 2


@pytest.mark.parametrize("status", ["running", "waiting", "pending", "aborting", "concluded"])
def test_while_a_stream_runs_they_are_those_of_before(status: str) -> None:
    files = NodeFiles(Refused)
    now(files, Monitor())
    monitor = Monitor(pull=status)
    assert now(files, monitor) == FILES
    assert monitor.asked == ["query-jobs"]


@pytest.mark.parametrize("found", ["running", "paused"])
def test_what_is_not_known_then_is_asked_for_while_it_is_paused(found: str) -> None:
    """After a death of the agent, which may have left it paused."""
    files, monitor = NodeFiles(Refused), Monitor(after=4, pull=found)
    assert now(files, monitor) == FILES
    assert monitor.jobs == {"pull": "running"}
    now(files, monitor)
    assert monitor.asked.count(NAMED) == 1


def test_one_that_is_at_its_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodefiles, "TRIES", 5)
    monitor = Monitor(pull="pending")
    with pytest.raises(nodefiles.Unknown, match="does not pause"):
        now(NodeFiles(Refused), monitor)
    assert NAMED not in monitor.asked


def test_while_a_pull_is_begun_nothing_is_asked() -> None:
    files, monitor = NodeFiles(Refused), Monitor()
    now(files, monitor)
    asyncio.run(files.keep("vm"))
    assert now(files, monitor) == FILES
    with pytest.raises(nodefiles.Unknown, match="just being begun"):
        now(files, monitor, graph(*FILES, "libvirt-2-format"))
    assert monitor.asked.count(NAMED) == 1
    files.release("vm")
    assert now(files, monitor) == FILES
    assert monitor.asked.count(NAMED) == 2


def test_a_glance_asks_nothing_that_is_known_and_another_qemu_is_asked_anew() -> None:
    files, monitor = NodeFiles(Refused), Monitor()
    now(files, monitor)
    assert asyncio.run(files.known("vm", monitor, ALL)) == FILES
    assert monitor.asked.count(NAMED) == 1
    files.forget("vm")
    assert asyncio.run(files.known("vm", monitor, ALL)) == FILES
    assert monitor.asked.count(NAMED) == 2
