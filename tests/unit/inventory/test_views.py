from __future__ import annotations

import datetime as dt

from contracts import hostagent, inventory
from services.inventory import disks, tables, views

WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ID = "00000000-0000-4000-8000-00000000000{}"
BOOT = {"kernel": "/k", "initrd": None, "cmdline": "", "serial_log": None}


def a_vm() -> tables.Vm:
    hardware = {"memory": 2**26, "cpus": 2, "firmware": "bios", "display": "vnc", "boot": BOOT}
    where = {"cluster_id": ID.format(2), "data_center_id": ID.format(3), "host_id": None}
    own = {"id": ID.format(1), "version": 1, "created_at": WHEN, "body_hash": ""}
    return tables.Vm(**own, **hardware, **where, name="vm1", description="", state="down", reason="")


def a_nic() -> tables.Nic:
    own = {"id": ID.format(4), "vm_id": ID.format(1), "position": 0, "name": "nic1", "mac": "56:00:00:00:00:01"}
    return tables.Nic(**own, model="virtio", network=None, linked=True)


def a_disk() -> tables.Disk:
    own = {"id": ID.format(5), "version": 1, "created_at": WHEN, "body_hash": "", "first_volume_id": ID.format(6)}
    plain = {"alias": "disk1", "capacity": 512, "format": "cow", "bus": "virtio", "boot_order": 1, "problem": None}
    return tables.Disk(**own, **plain, domain_id=ID.format(7), vm_id=ID.format(1), origin="new", state="ok")


def a_domain() -> tables.StorageDomain:
    own = {"id": ID.format(7), "version": 1, "created_at": WHEN, "body_hash": "", "name": "d1", "path": "/srv"}
    plain = {"data_center_id": ID.format(3), "layout": 5, "state": "active", "problem": None, "total": 2, "free": 1}
    return tables.StorageDomain(**own, **plain)


def test_rows_are_shown_as_promised() -> None:
    shown = views.show_vm(a_vm(), [a_nic()], [a_disk()])
    assert inventory.vm_changed.load(shown) == shown
    assert shown["created_at"] == "2026-01-01T00:00:00.000000Z"
    domain = views.show(a_domain())
    assert inventory.storage_domain_changed.load(domain) == domain


def test_the_agent_gets_a_spec_that_it_accepts() -> None:
    spec = views.vm_spec(a_vm(), [a_nic()], [(a_disk(), a_domain())])
    loaded = hostagent.start_vm.load_request(spec)
    assert loaded["disks"][0]["disk"]["domain"] == {"id": ID.format(7), "path": "/srv"}
    assert loaded["disks"][0]["leaf"] is None
    assert loaded["boot"]["kernel"] == "/k"


def test_a_disks_first_volume_always_has_the_same_id() -> None:
    assert disks.first_volume_of(ID.format(5)) == disks.first_volume_of(ID.format(5))
    assert disks.first_volume_of(ID.format(5)) != disks.first_volume_of(ID.format(6))
