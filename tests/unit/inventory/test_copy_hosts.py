"""A copy is asked for, followed and stopped on the host that makes it, whoever else could be asked by then."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import hostagent
from services.inventory import tidy
from tests.unit.inventory.test_templates import delete_template, slowly, template_now, template_of, vm_of
from tests.unit.inventory.town import Town


@pytest.fixture
def asked(town: Town, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Which promise was asked of which host."""
    found: list[tuple[str, str | None]] = []
    call = town.bus.call

    def note(promise: Any, request: Any, *, at: str | None = None, deadline: float | None = None) -> Any:
        found.append((promise.method, at))
        return call(promise, request, at=at, deadline=deadline)

    monkeypatch.setattr(town.bus, "call", note)
    return found


def test_a_copy_is_followed_and_stopped_where_it_is_made(town: Town, asked: list[tuple[str, str | None]]) -> None:
    vm_id = vm_of(town)
    writer = next(at for method, at in asked if method == "create_domain")
    first, other = sorted(town.hosts, key=lambda world: world.host_id != writer)
    slowly(town)
    town.beat(first, problem="libvirt is away")
    template = template_of(town, vm_id)
    town.beat(first)
    tidy.follow_copies(town.scene)
    assert template_now(town, template)["state"] == "creating"
    delete_template(town, template)
    about = (hostagent.copy_disk.method, hostagent.delete_disk.method)
    assert [one for one in asked if one[0] in about] == [
        ("copy_disk", other.host_id),
        ("copy_disk", other.host_id),
        ("delete_disk", other.host_id),
    ]


def test_where_its_host_cannot_be_asked_another_one_makes_it(town: Town, asked: list[tuple[str, str | None]]) -> None:
    vm_id = vm_of(town)
    slowly(town)
    template_of(town, vm_id)
    maker = next(at for method, at in asked if method == "copy_disk")
    first, other = sorted(town.hosts, key=lambda world: world.host_id != maker)
    town.beat(first, problem="libvirt is away")
    for _ in range(2):
        tidy.follow_copies(town.scene)
        town.beat(first)
    assert [at for method, at in asked if method == "copy_disk"] == [maker, other.host_id, other.host_id]
