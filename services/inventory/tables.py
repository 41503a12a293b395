"""Inventory's tables. Times are UTC, sizes bytes, ids lower-case UUIDs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from chassis.tables import UtcTime, add_frame_tables

metadata = sa.MetaData()
Id = sa.String(36)
Json = sa.JSON(none_as_null=True)


class Row(DeclarativeBase):
    """Every row that a promise shows. `body_hash`: of the request that made it, so that a repeat is recognised."""

    metadata = metadata

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[dt.datetime] = mapped_column(UtcTime)
    body_hash: Mapped[str] = mapped_column(sa.String(64))


class DataCenter(Row):
    __tablename__ = "data_centers"
    name: Mapped[str] = mapped_column(sa.String(255), unique=True)
    description: Mapped[str] = mapped_column(sa.Text)
    mac_first: Mapped[str] = mapped_column(sa.String(17))
    mac_last: Mapped[str] = mapped_column(sa.String(17))
    leases: Mapped[bool] = mapped_column()
    io_timeout: Mapped[int] = mapped_column()


class Cluster(Row):
    __tablename__ = "clusters"
    name: Mapped[str] = mapped_column(sa.String(255), unique=True)
    data_center_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("data_centers.id"), index=True)
    description: Mapped[str] = mapped_column(sa.Text)


class Host(Row):
    """`sanlock_id`: 1 to 2000, once in a data center. `agent_id` to `lower_best`: the pulse, see beats.py; written with
    every heartbeat without a new version."""

    __tablename__ = "hosts"
    name: Mapped[str] = mapped_column(sa.String(255), unique=True)
    cluster_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("clusters.id"), index=True)
    state: Mapped[str] = mapped_column(sa.String(16))
    problem: Mapped[str | None] = mapped_column(sa.Text)
    facts: Mapped[dict[str, Any] | None] = mapped_column(Json)
    boot_id: Mapped[str | None] = mapped_column(sa.Text)
    agent_id: Mapped[str | None] = mapped_column(Id)
    sequence: Mapped[int] = mapped_column(sa.BigInteger, default=-1)
    replaced: Mapped[list[str]] = mapped_column(sa.JSON, default=list)
    clock_offset: Mapped[float | None] = mapped_column()
    lower_since: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    lower_best: Mapped[float | None] = mapped_column()
    last_seen: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    sanlock_id: Mapped[int | None] = mapped_column()
    lockspaces: Mapped[list[dict[str, Any]]] = mapped_column(sa.JSON, default=list)


class StorageDomain(Row):
    """`host_id`: who wrote the layout. `asked_until`: a request works on this row until then, after that the tidy
    may. `looked_at`: when the sizes were last asked for."""

    __tablename__ = "storage_domains"
    name: Mapped[str] = mapped_column(sa.String(255), unique=True)
    data_center_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("data_centers.id"), index=True)
    path: Mapped[str] = mapped_column(sa.String(1024))
    layout: Mapped[int] = mapped_column()
    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    problem: Mapped[str | None] = mapped_column(sa.Text)
    total: Mapped[int | None] = mapped_column(sa.BigInteger)
    free: Mapped[int | None] = mapped_column(sa.BigInteger)
    host_id: Mapped[str | None] = mapped_column(Id)
    asked_until: Mapped[dt.datetime] = mapped_column(UtcTime)
    looked_at: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    __table_args__ = (sa.UniqueConstraint("data_center_id", "path"),)


class Vm(Row):
    """`since` to `trust_after`: see powers.Power. `lease_domain_id`: where its lease is, once it had one."""

    __tablename__ = "vms"
    name: Mapped[str] = mapped_column(sa.String(255))
    cluster_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("clusters.id"), index=True)
    data_center_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("data_centers.id"))
    description: Mapped[str] = mapped_column(sa.Text)
    memory: Mapped[int] = mapped_column(sa.BigInteger)
    cpus: Mapped[int] = mapped_column()
    firmware: Mapped[str] = mapped_column(sa.String(8))
    display: Mapped[str] = mapped_column(sa.String(8))
    boot: Mapped[dict[str, Any] | None] = mapped_column(Json)
    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    reason: Mapped[str] = mapped_column(sa.Text, default="")
    template_id: Mapped[str | None] = mapped_column(Id)
    host_id: Mapped[str | None] = mapped_column(Id, index=True)
    lease_domain_id: Mapped[str | None] = mapped_column(Id, index=True)
    also_on: Mapped[str | None] = mapped_column(Id, index=True)
    since: Mapped[dt.datetime] = mapped_column(UtcTime)
    heard: Mapped[dt.datetime | None] = mapped_column(UtcTime)
    trust_after: Mapped[dt.datetime] = mapped_column(UtcTime)
    asked_until: Mapped[dt.datetime] = mapped_column(UtcTime)
    __table_args__ = (sa.UniqueConstraint("data_center_id", "name"),)


class Template(Row):
    """`nics`: what a VM's NICs begin with; they get their ids and addresses there. `vm_id`: may be gone."""

    __tablename__ = "templates"
    name: Mapped[str] = mapped_column(sa.String(255))
    cluster_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("clusters.id"), index=True)
    data_center_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("data_centers.id"))
    vm_id: Mapped[str] = mapped_column(Id)
    description: Mapped[str] = mapped_column(sa.Text)
    memory: Mapped[int] = mapped_column(sa.BigInteger)
    cpus: Mapped[int] = mapped_column()
    firmware: Mapped[str] = mapped_column(sa.String(8))
    display: Mapped[str] = mapped_column(sa.String(8))
    boot: Mapped[dict[str, Any] | None] = mapped_column(Json)
    nics: Mapped[list[dict[str, Any]]] = mapped_column(sa.JSON)
    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    problem: Mapped[str | None] = mapped_column(sa.Text)
    asked_until: Mapped[dt.datetime] = mapped_column(UtcTime)
    __table_args__ = (sa.UniqueConstraint("data_center_id", "name"),)


class Disk(Row):
    """`origin`: new, or a copy of or thin on `source_disk_id`. `template_id`: it is a template's, and in no VM.
    `host_id`: who was asked to make it from that one; a copy goes on there."""

    __tablename__ = "disks"
    alias: Mapped[str] = mapped_column(sa.String(255))
    domain_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("storage_domains.id"), index=True)
    capacity: Mapped[int] = mapped_column(sa.BigInteger)
    format: Mapped[str] = mapped_column(sa.String(8))
    first_volume_id: Mapped[str] = mapped_column(Id, unique=True)
    vm_id: Mapped[str | None] = mapped_column(Id, sa.ForeignKey("vms.id"), index=True)
    bus: Mapped[str] = mapped_column(sa.String(8))
    boot_order: Mapped[int | None] = mapped_column()
    template_id: Mapped[str | None] = mapped_column(
        Id, sa.ForeignKey("templates.id", name="disks_template_id_fkey"), index=True
    )
    origin: Mapped[str] = mapped_column(sa.String(8), default="new")
    source_disk_id: Mapped[str | None] = mapped_column(Id, index=True)
    copied: Mapped[int | None] = mapped_column(sa.BigInteger)
    to_copy: Mapped[int | None] = mapped_column(sa.BigInteger)
    host_id: Mapped[str | None] = mapped_column(Id)
    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    problem: Mapped[str | None] = mapped_column(sa.Text)
    asked_until: Mapped[dt.datetime] = mapped_column(UtcTime)


class Part(DeclarativeBase):
    """Rows that belong to another one and have no version of their own."""

    metadata = metadata


class Nic(Part):
    """A MAC address is used once in all data centers: VMs move, and networks meet."""

    __tablename__ = "nics"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    vm_id: Mapped[str] = mapped_column(Id, sa.ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    position: Mapped[int] = mapped_column()
    name: Mapped[str] = mapped_column(sa.String(255))
    mac: Mapped[str] = mapped_column(sa.String(17), unique=True)
    model: Mapped[str] = mapped_column(sa.String(16))
    network: Mapped[str | None] = mapped_column(sa.String(255))
    linked: Mapped[bool] = mapped_column()


class Gone(Part):
    """What was deleted, so that a repeated (or redelivered) deletion is answered like the first."""

    __tablename__ = "gone"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    deleted_at: Mapped[dt.datetime] = mapped_column(UtcTime, index=True)


for _table in (DataCenter, Cluster, Host, StorageDomain, Vm, Template, Disk):
    sa.Index(f"{_table.__tablename__}_in_order", _table.created_at, _table.id)  # the order of every list

add_frame_tables(metadata)
