"""Data centers and clusters: rows with checks, nothing on any host."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from contracts import errors
from services.inventory import macs, store, tables
from services.inventory.scene import Scene

Ask = dict[str, Any]


def create_data_center(scene: Scene, session: Session, ask: Ask) -> Ask:
    macs.check_pool(ask["mac_first"], ask["mac_last"])
    row = store.repeated(session, tables.DataCenter, ask)
    if row is None:
        store.free_name(session, tables.DataCenter, ask["name"])
        row = tables.DataCenter(
            **ask, version=1, created_at=scene.now(), body_hash=store.body_hash(tables.DataCenter, ask)
        )
        store.add(session, row)
        scene.log.info(f'data center "{row.name}" was created', data_center_id=row.id)
    return store.show(session, row)


def create_cluster(scene: Scene, session: Session, ask: Ask) -> Ask:
    row = store.repeated(session, tables.Cluster, ask)
    if row is None:
        store.get(session, tables.DataCenter, ask["data_center_id"])
        store.free_name(session, tables.Cluster, ask["name"])
        row = tables.Cluster(**ask, version=1, created_at=scene.now(), body_hash=store.body_hash(tables.Cluster, ask))
        store.add(session, row)
        scene.log.info(f'cluster "{row.name}" was created', cluster_id=row.id)
    return store.show(session, row)


def change(scene: Scene, session: Session, sort: type[tables.DataCenter] | type[tables.Cluster], ask: Ask) -> Ask:
    row: Any = store.hold(session, sort, ask["id"], ask["version"])
    given = {name: ask[name] for name in ("name", "description", "leases") if ask.get(name) is not None}
    if "name" in given:
        store.free_name(session, sort, given["name"], but=row.id)
    if any(getattr(row, name) != value for name, value in given.items()):
        store.change(session, row, **given)
        scene.log.info(f'{store.KINDS[sort].word} "{row.name}" was changed', id=row.id)
    return store.show(session, row)


def delete_data_center(scene: Scene, session: Session, ask: Ask) -> Ask:
    row = store.hold(session, tables.DataCenter, ask["id"], ask["version"])
    clusters = store.names_of(session, tables.Cluster, tables.Cluster.data_center_id == row.id)
    domains = store.names_of(session, tables.StorageDomain, tables.StorageDomain.data_center_id == row.id)
    refuse_in_use(row, cluster=clusters, domain=domains)
    store.drop(session, row)
    scene.log.info(f'data center "{row.name}" was deleted', data_center_id=row.id)
    return {"id": row.id}


def delete_cluster(scene: Scene, session: Session, ask: Ask) -> Ask:
    row = store.hold(session, tables.Cluster, ask["id"], ask["version"])
    hosts = store.names_of(session, tables.Host, tables.Host.cluster_id == row.id)
    vms = store.names_of(session, tables.Vm, tables.Vm.cluster_id == row.id)
    templates = store.names_of(session, tables.Template, tables.Template.cluster_id == row.id)
    refuse_in_use(row, host=hosts, vm=vms, template=templates)
    store.drop(session, row)
    scene.log.info(f'cluster "{row.name}" was deleted', cluster_id=row.id)
    return {"id": row.id}


def refuse_in_use(row: tables.Row, **users: list[str]) -> None:
    """Raise StillInUse that names who uses the row, sort by sort."""
    parts = [f"{sort} {name}" for sort, names in users.items() for name in names]
    if parts:
        raise errors.StillInUse(kind=store.KINDS[type(row)].word, id=row.id, by=", ".join(parts))
