"""Which guests are ended because an I/O error stopped them: after a time, and only for one that failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.hostagent import io_pauses, monitor


class Monitors:
    """One guest. `status`: QEMU's run state, None while it is mute; `disks`: the state of each disk's I/O."""

    def __init__(self) -> None:
        self.status_word: str | None = "running"
        self.disks = ["ok", "ok"]

    def status(self, vm_id: str, seconds: float) -> str:
        if self.status_word is None:
            raise monitor.Mute("no answer")
        return self.status_word

    def ask(self, vm_id: str, command: str, seconds: float) -> Any:
        assert command == "query-block"
        return [{"device": "", "io-status": word} for word in self.disks] + [{"device": "cd"}]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(io_pauses, "time", made)
    return made


@pytest.fixture
def guest() -> Monitors:
    return Monitors()


class Watch:
    """The rule, and the guest's process."""

    def __init__(self, guest: Monitors, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pid: int | None = 7
        monitors: Any = guest
        self._rule = io_pauses.IoPauses(monitors, 80.0)
        monkeypatch.setattr(io_pauses, "process", SimpleNamespace(find=self._find))

    def _find(self, _vm_id: str) -> Any:
        return None if self.pid is None else SimpleNamespace(pid=self.pid)

    def overdue(self, vm_ids: list[str]) -> dict[str, float]:
        return dict(self._rule.overdue(vm_ids))


@pytest.fixture
def pauses(guest: Monitors, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(guest, monkeypatch)


def test_a_guest_whose_disk_failed_is_overdue_after_its_time(clock: Clock, guest: Monitors, pauses: Watch) -> None:
    guest.status_word, guest.disks = "io-error", ["ok", "failed"]
    assert pauses.overdue(["vm"]) == {}
    clock.now += 79
    assert pauses.overdue(["vm"]) == {}
    clock.now += 1
    assert pauses.overdue(["vm"]) == {"vm": 80.0}
    assert pauses.overdue([]) == {}


@pytest.mark.parametrize(
    ("status", "disks"),
    [("io-error", ["ok", "nospace"]), ("paused", ["failed", "ok"]), ("running", ["ok", "ok"])],
    ids=["no room", "paused by a person", "runs"],
)
def test_any_other_guest_never_is(clock: Clock, guest: Monitors, pauses: Watch, status: str, disks: list[str]) -> None:
    guest.status_word, guest.disks = status, disks
    for _ in range(3):
        assert pauses.overdue(["vm"]) == {}
        clock.now += 1000


def test_one_that_went_on_begins_anew_and_one_that_is_mute_does_not(
    clock: Clock, guest: Monitors, pauses: Watch
) -> None:
    guest.status_word, guest.disks = "io-error", ["failed"]
    assert pauses.overdue(["vm"]) == {}
    clock.now += 70
    guest.status_word = "running"
    assert pauses.overdue(["vm"]) == {}
    guest.status_word = "io-error"
    clock.now += 20
    assert pauses.overdue(["vm"]) == {}
    guest.status_word = None
    clock.now += 100
    assert pauses.overdue(["vm"]) == {}, "nobody knows whether it runs again"
    guest.status_word = "io-error"
    assert pauses.overdue(["vm"]) == {"vm": 100.0}


def test_the_time_of_a_qemu_that_has_ended_is_not_its_successors(clock: Clock, guest: Monitors, pauses: Watch) -> None:
    guest.status_word, guest.disks = "io-error", ["failed"]
    assert pauses.overdue(["vm"]) == {}
    clock.now += 100
    pauses.pid = 8
    assert pauses.overdue(["vm"]) == {}
    clock.now += 79
    pauses.pid = None
    assert pauses.overdue(["vm"]) == {}
    pauses.pid = 8
    assert pauses.overdue(["vm"]) == {}, "it was not there at one look"
    clock.now += 80
    assert pauses.overdue(["vm"]) == {"vm": 80.0}
