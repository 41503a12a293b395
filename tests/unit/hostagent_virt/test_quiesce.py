"""A guest agent that does not thaw is asked again with every heartbeat, and not for ever."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts import errors
from services.hostagent import quiesce
from services.hostagent.journal import Journal
from services.hostagent.locks import Named
from services.hostagent.virt import NoDomain

VM = "vm-1"


class Virt:
    """`thaws`: how the next ones end; then well."""

    def __init__(self) -> None:
        self.thaws: list[Exception] = []
        self.asked: list[str] = []

    def ask(self, vm_id: str, what: str, call: Callable[[Any], Any]) -> None:
        self.asked.append(what)
        if what == "fsThaw" and self.thaws:
            raise self.thaws.pop(0)


@pytest.fixture
def virt() -> Virt:
    return Virt()


@pytest.fixture
def parts(virt: Virt, tmp_path: Path) -> Any:
    return types.SimpleNamespace(virt=virt, journal=Journal(tmp_path / "journal"), vms=Named())


@pytest.fixture
def frozen(parts: Any) -> quiesce.Quiesce:
    made = quiesce.Quiesce(parts)
    assert made.freeze({"vm_id": VM, "quiesce": "required"}, connected=True)
    return made


def refusal() -> Exception:
    return errors.HypervisorRefused(action="fsThaw", reason="Guest agent is not responding")


def test_a_refused_thaw_is_asked_for_again_until_it_is_done(frozen: quiesce.Quiesce, parts: Any, virt: Virt) -> None:
    virt.thaws = [refusal(), errors.HypervisorAway(reason="gone"), refusal()]
    for _ in range(3):
        frozen.thaw_left_over()
        assert VM in parts.journal.all("freezes")
    frozen.thaw_left_over()
    assert parts.journal.all("freezes") == {}


def test_it_is_not_asked_for_ever(frozen: quiesce.Quiesce, parts: Any, virt: Virt) -> None:
    virt.thaws = [refusal() for _ in range(quiesce.TRIES)]
    for _ in range(quiesce.TRIES - 1):
        frozen.thaw_left_over()
    assert VM in parts.journal.all("freezes")
    frozen.thaw_left_over()
    assert parts.journal.all("freezes") == {}


def test_a_vm_that_has_ended_needs_no_thaw(frozen: quiesce.Quiesce, parts: Any, virt: Virt) -> None:
    virt.thaws = [NoDomain()]
    frozen.thaw_left_over()
    assert parts.journal.all("freezes") == {}


def test_a_snapshot_under_way_keeps_its_guest_frozen(frozen: quiesce.Quiesce, parts: Any, virt: Virt) -> None:
    with parts.vms.hold(VM, "a snapshot", 1.0):
        frozen.thaw_left_over()
    assert virt.asked == ["fsFreeze"]
    assert VM in parts.journal.all("freezes")
