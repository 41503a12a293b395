"""Rows as the promises show them. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

from chassis import clock
from services.inventory import tables

Shown = dict[str, Any]
_PLAIN: dict[type[Any], tuple[str, ...]] = {
    tables.DataCenter: ("name", "description", "mac_first", "mac_last", "leases", "io_timeout"),
    tables.Cluster: ("name", "data_center_id", "description"),
    tables.Host: (
        "name",
        "cluster_id",
        "state",
        "problem",
        "facts",
        "boot_id",
        "clock_offset",
        "last_seen",
        "sanlock_id",
        "lockspaces",
    ),
    tables.StorageDomain: ("name", "data_center_id", "path", "layout", "state", "problem", "total", "free"),
    tables.Disk: (
        "alias",
        "domain_id",
        "capacity",
        "format",
        "first_volume_id",
        "vm_id",
        "bus",
        "boot_order",
        "template_id",
        "origin",
        "source_disk_id",
        "copied",
        "to_copy",
        "state",
        "problem",
    ),
    tables.Vm: (
        "name",
        "cluster_id",
        "data_center_id",
        "description",
        "memory",
        "cpus",
        "firmware",
        "display",
        "boot",
        "state",
        "reason",
        "host_id",
        "template_id",
        "lease_domain_id",
    ),
    tables.Template: (
        "name",
        "cluster_id",
        "data_center_id",
        "vm_id",
        "description",
        "memory",
        "cpus",
        "firmware",
        "display",
        "boot",
        "nics",
        "state",
        "problem",
    ),
}
_NIC = ("id", "name", "mac", "model", "network", "linked")


def show(row: tables.Row) -> Shown:
    """Everything but a VM and a template."""
    shown = {name: _plain(getattr(row, name)) for name in ("id", "version", "created_at", *_PLAIN[type(row)])}
    if isinstance(row, tables.StorageDomain):
        shown["type"] = "file"
    return shown


def show_vm(row: tables.Vm, nics: Iterable[tables.Nic], disks: Iterable[tables.Disk]) -> Shown:
    return {**show(row), "nics": [show_nic(nic) for nic in nics], "disks": [show(disk) for disk in disks]}


def show_template(row: tables.Template, disks: Iterable[tables.Disk]) -> Shown:
    return {**show(row), "disks": [show(disk) for disk in disks]}


def show_nic(nic: tables.Nic) -> Shown:
    return {name: getattr(nic, name) for name in _NIC}


def disk_ref(disk: tables.Disk, domain: tables.StorageDomain) -> Shown:
    return {"disk_id": disk.id, "domain": domain_ref(domain)}


def domain_ref(domain: tables.StorageDomain) -> Shown:
    return {"id": domain.id, "path": domain.path}


def vm_spec(
    vm: tables.Vm,
    nics: Iterable[tables.Nic],
    disks: Iterable[tuple[tables.Disk, tables.StorageDomain]],
    lease: Shown | None = None,
) -> Shown:
    """What the agent builds libvirt's XML from; the leaf of each disk is the storage's to say."""
    names = ("id", "name", "memory", "cpus", "firmware", "display", "boot")
    return {
        **{name: getattr(vm, name) for name in names},
        "disks": [
            {"disk": disk_ref(disk, domain), "bus": disk.bus, "boot_order": disk.boot_order, "leaf": None}
            for disk, domain in disks
        ],
        "nics": [{key: value for key, value in show_nic(nic).items() if key != "name"} for nic in nics],
        "lease": lease,
    }


def _plain(value: Any) -> Any:
    return clock.iso(value) if isinstance(value, dt.datetime) else value
