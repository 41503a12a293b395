"""A repeated request is known again across an upgrade that gives requests more fields."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import errors, inventory
from contracts import fields as f
from services.inventory import clones, store, tables
from tests.unit.inventory.town import Town, new_id

Ask = dict[str, Any]


class Later(inventory.CreateVm):
    """CreateVm of a later version."""

    balloon = f.flag(load_default=True)
    watchdog = f.text(load_default=None, allow_none=True)


def asked(town: Town, **more: Any) -> Ask:
    nics = [{"id": new_id(), "name": "eth0"}]
    return {"id": new_id(), "name": "web1", "cluster_id": town.cluster, "memory": 2**30, "nics": nics, **more}


def later(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> Ask:
    creates: dict[Any, Any] = {**store.CREATES}
    creates[tables.Vm] = Later()
    monkeypatch.setattr(store, "CREATES", creates)
    loaded: Ask = Later().load(ask)
    return loaded


def test_a_repeat_after_an_upgrade_is_no_other_request(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = asked(town)
    made = clones.create_vm(town.scene, inventory.create_vm.load_request(ask))
    assert clones.create_vm(town.scene, later(monkeypatch, ask))["id"] == made["id"]
    with pytest.raises(errors.IdempotencyConflict):
        clones.create_vm(town.scene, later(monkeypatch, {**ask, "balloon": False}))
    with pytest.raises(errors.IdempotencyConflict):
        clones.create_vm(town.scene, later(monkeypatch, {**ask, "memory": 2**31}))


def test_a_row_of_before_with_the_hash_of_all_fields_is_known_again(town: Town) -> None:
    ask = inventory.create_vm.load_request(asked(town))
    clones.create_vm(town.scene, ask)
    town.scene.write(lambda session: setattr(store.get(session, tables.Vm, ask["id"]), "body_hash", store._hash(ask)))
    assert clones.create_vm(town.scene, ask)["id"] == ask["id"]


def test_what_equals_a_default_is_left_out_also_inside() -> None:
    nic = {"id": new_id(), "name": "eth0"}
    ask = {"id": new_id(), "name": "web1", "cluster_id": new_id(), "memory": 2**30}
    loaded = inventory.create_vm.load_request({**ask, "nics": [nic], "cpus": 2, "description": ""})
    assert f.said(inventory.CreateVm(), loaded) == {**ask, "nics": [nic], "cpus": 2}
