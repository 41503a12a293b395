"""All SQL of the inventory. Every change raises the row's version and tells the event in the same transaction.

Locks: a row that will be changed is held (`hold`) for the transaction; a VM before its disks, several rows in the
order of their ids, so that two transactions on PostgreSQL never wait for each other.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import clock, outbox
from chassis.database import Database
from contracts import errors, fields
from contracts import inventory as contract
from contracts.promise import Event
from services.inventory import tables, views

R = TypeVar("R", bound=tables.Row)
T = TypeVar("T")
Ask = dict[str, Any]


class Kind(NamedTuple):
    """What a sort of row is called, and the news about it."""

    word: str
    changed: Event
    deleted: Event


KINDS: dict[type[tables.Row], Kind] = {
    tables.DataCenter: Kind("data-center", contract.data_center_changed, contract.data_center_deleted),
    tables.Cluster: Kind("cluster", contract.cluster_changed, contract.cluster_deleted),
    tables.Host: Kind("host", contract.host_changed, contract.host_deleted),
    tables.StorageDomain: Kind("domain", contract.storage_domain_changed, contract.storage_domain_deleted),
    tables.Disk: Kind("disk", contract.disk_changed, contract.disk_deleted),
    tables.Vm: Kind("vm", contract.vm_changed, contract.vm_deleted),
    tables.Template: Kind("template", contract.template_changed, contract.template_deleted),
}

CREATES: dict[type[tables.Row], fields.Request] = {
    tables.DataCenter: contract.CreateDataCenter(),
    tables.Cluster: contract.CreateCluster(),
    tables.Host: contract.CreateHost(),
    tables.StorageDomain: contract.CreateStorageDomain(),
    tables.Disk: contract.CreateDisk(),
    tables.Vm: contract.CreateVm(),
    tables.Template: contract.CreateTemplate(),
}


def write(database: Database, work: Callable[[Session], T]) -> T:
    """Run one transaction. Where two of them make the same thing at once (PostgreSQL), the second is run again: it
    then finds the first one's row, and the same checks give the right answer."""
    for _ in range(2):
        try:
            with database.write() as session:
                return work(session)
        except (sa.exc.IntegrityError, errors.AlreadyExists, errors.MacTaken):
            if database.is_sqlite:  # there transactions run one after the other
                raise
    with database.write() as session:
        return work(session)


# -- one row ----------------------------------------------------------------------------------------------


def get(session: Session, sort: type[R], id_: str) -> R:
    row = session.get(sort, id_)
    if row is None:
        raise errors.NotFound(kind=KINDS[sort].word, id=id_)
    return row


def find(session: Session, sort: type[R], id_: str) -> R | None:
    """The row, held for a change until the transaction ends."""
    query = sa.select(sort).where(sort.id == id_).with_for_update().execution_options(populate_existing=True)
    return session.execute(query).scalar_one_or_none()


def hold(session: Session, sort: type[R], id_: str, version: int | None = None) -> R:
    """The row, held for a change; raises NotFound, and VersionMismatch unless it has this version."""
    row = find(session, sort, id_)
    if row is None:
        raise errors.NotFound(kind=KINDS[sort].word, id=id_)
    if version is not None:
        check_version(row, version)
    return row


def check_version(row: tables.Row, version: int) -> None:
    if row.version != version:
        kind = KINDS[type(row)].word
        raise errors.VersionMismatch(kind=kind, id=row.id, has=row.version, named=version)


def repeated(session: Session, sort: type[R], ask: Ask) -> R | None:
    """The row that the same request made before. The same id in another request is IdempotencyConflict."""
    row = find(session, sort, ask["id"])
    # rows of before kept the hash of all fields, with their defaults
    if row is not None and row.body_hash not in (body_hash(sort, ask), _hash(ask)):
        raise errors.IdempotencyConflict(id=ask["id"])
    return row


def body_hash(sort: type[tables.Row], ask: Ask) -> str:
    """Of what was said: a field that an upgrade adds does not make the same request another one."""
    return _hash(fields.said(CREATES[sort], ask))


def _hash(ask: Ask) -> str:
    return hashlib.sha256(json.dumps(ask, sort_keys=True).encode()).hexdigest()


def free_name(session: Session, sort: type[Any], name: str, *where: Any, field: str = "name", but: str = "") -> None:
    """Raise AlreadyExists if another row has this name."""
    query = sa.select(sort.id).where(getattr(sort, field) == name, sort.id != but, *where)
    if session.execute(query.limit(1)).first() is not None:
        raise errors.AlreadyExists(kind=KINDS[sort].word, field=field, value=name)


def add(session: Session, row: tables.Row, parts: Iterable[tables.Nic] = ()) -> None:
    session.add(row)
    session.flush()
    session.add_all(parts)
    session.flush()
    _tell(session, row)


def change(session: Session, row: tables.Row, **fields: Any) -> None:
    """Set fields, raise the version, tell the news."""
    for name, value in fields.items():
        setattr(row, name, value)
    row.version += 1
    session.flush()
    _tell(session, row)


def drop(session: Session, row: tables.Row) -> None:
    kind = KINDS[type(row)]
    session.delete(row)
    session.merge(tables.Gone(id=row.id, kind=kind.word, deleted_at=dt.datetime.now(dt.UTC)))
    session.flush()
    outbox.tell(session, kind.deleted, {"id": row.id})


def was_deleted(session: Session, sort: type[tables.Row], id_: str) -> bool:
    """Whether there was such a row, not so long ago."""
    return session.get(tables.Gone, (id_, KINDS[sort].word)) is not None


def forget_gone(session: Session, before: dt.datetime) -> None:
    """No message comes back after so long."""
    session.execute(sa.delete(tables.Gone).where(tables.Gone.deleted_at < before))


def _tell(session: Session, row: tables.Row) -> None:
    outbox.tell(session, KINDS[type(row)].changed, show(session, row))


def show(session: Session, row: tables.Row) -> views.Shown:
    return show_all(session, [row])[0]


def show_all(session: Session, rows: Sequence[tables.Row]) -> list[views.Shown]:
    """Rows as the promises show them; the parts of all VMs and templates are read at once."""
    vms = [row.id for row in rows if isinstance(row, tables.Vm)]
    nics, disks = nics_of(session, *vms), disks_of(session, *vms)
    bases = disks_of_templates(session, *(row.id for row in rows if isinstance(row, tables.Template)))

    def shown(row: tables.Row) -> views.Shown:
        if isinstance(row, tables.Vm):
            return views.show_vm(row, nics.get(row.id, ()), disks.get(row.id, ()))
        return views.show_template(row, bases.get(row.id, ())) if isinstance(row, tables.Template) else views.show(row)

    return [shown(row) for row in rows]


# -- lists ------------------------------------------------------------------------------------------------


def page(session: Session, sort: type[R], ask: Ask, **equal: Any) -> Ask:
    """A page of rows, oldest first. `equal`: columns and the value they must have, None for any."""
    where = [getattr(sort, name) == value for name, value in equal.items() if value is not None]
    total = session.execute(sa.select(sa.func.count()).select_from(sort).where(*where)).scalar_one()
    if ask["after"] is not None:
        where.append(sa.tuple_(sort.created_at, sort.id) > sa.tuple_(*_literals(*_open(ask["after"]))))
    query = sa.select(sort).where(*where).order_by(sort.created_at, sort.id).limit(ask["limit"] + 1)
    rows = list(session.execute(query).scalars())
    more, rows = len(rows) > ask["limit"], rows[: ask["limit"]]
    return {"items": show_all(session, rows), "next": _cursor(rows[-1]) if more else None, "total": total}


def _literals(created_at: dt.datetime, id_: str) -> tuple[Any, Any]:
    return sa.literal(created_at, tables.UtcTime()), sa.literal(id_, tables.Id)


def _cursor(row: tables.Row) -> str:
    return base64.urlsafe_b64encode(f"{clock.iso(row.created_at)} {row.id}".encode()).decode()


def _open(cursor: str) -> tuple[dt.datetime, str]:
    try:
        moment, id_ = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().split(" ")
        return clock.parse(moment), id_
    except (ValueError, binascii.Error):
        raise errors.BadRequest(errors={"after": ["Not a cursor of this list."]}) from None


# -- what belongs together --------------------------------------------------------------------------------


def nics_of(session: Session, *vm_ids: str) -> dict[str, list[tables.Nic]]:
    if not vm_ids:
        return {}
    query = sa.select(tables.Nic).where(tables.Nic.vm_id.in_(vm_ids)).order_by(tables.Nic.position)
    return _grouped(session.execute(query).scalars(), lambda nic: nic.vm_id)


def disks_of(session: Session, *vm_ids: str) -> dict[str, list[tables.Disk]]:
    if not vm_ids:
        return {}
    query = sa.select(tables.Disk).where(tables.Disk.vm_id.in_(vm_ids))
    found = session.execute(query.order_by(tables.Disk.created_at, tables.Disk.id)).scalars()
    return _grouped(found, lambda disk: str(disk.vm_id))


def disks_of_templates(session: Session, *template_ids: str) -> dict[str, list[tables.Disk]]:
    if not template_ids:
        return {}
    query = sa.select(tables.Disk).where(tables.Disk.template_id.in_(template_ids))
    found = session.execute(query.order_by(tables.Disk.created_at, tables.Disk.id)).scalars()
    return _grouped(found, lambda disk: str(disk.template_id))


def users_of(session: Session, disk_ids: Sequence[str], most: int = 5) -> list[str]:
    """Who needs these disks of a template, in words: what is thin on them, and copies that are under way."""
    needs = sa.or_(tables.Disk.origin == "thin", tables.Disk.state == "creating")
    query = sa.select(tables.Disk.alias, tables.Vm.name).outerjoin(tables.Vm, tables.Vm.id == tables.Disk.vm_id)
    rows = session.execute(
        query.where(tables.Disk.source_disk_id.in_(disk_ids), needs).order_by(tables.Disk.created_at)
    )
    names = list(dict.fromkeys(f"vm {vm}" if vm else f"disk {alias}" for alias, vm in rows))
    return names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])


def _grouped(rows: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def hold_disk(session: Session, id_: str, version: int | None = None) -> tuple[tables.Disk, tables.Vm | None]:
    """A disk and the VM it is plugged into, both held, the VM first."""
    vm_id = get(session, tables.Disk, id_).vm_id
    vm = find(session, tables.Vm, vm_id) if vm_id else None
    disk = hold(session, tables.Disk, id_, version)
    if disk.vm_id != vm_id:  # it was plugged or unplugged just now
        raise errors.VersionMismatch(kind="disk", id=id_, has=disk.version, named=version or disk.version - 1)
    return disk, vm


def hold_disks(session: Session, vm_id: str) -> list[tables.Disk]:
    """The disks of a VM that is held: locked in the order of ids, answered in the order in which guests see them."""
    query = sa.select(tables.Disk).where(tables.Disk.vm_id == vm_id).order_by(tables.Disk.id).with_for_update()
    held = session.execute(query.execution_options(populate_existing=True)).scalars()
    return sorted(held, key=lambda disk: (disk.created_at, disk.id))


def with_domains(session: Session, disks: Iterable[tables.Disk]) -> list[tuple[tables.Disk, tables.StorageDomain]]:
    return [(disk, get(session, tables.StorageDomain, disk.domain_id)) for disk in disks]


def set_nics(session: Session, vm: tables.Vm, nics: Sequence[tables.Nic]) -> None:
    """Replace a VM's NICs. The old rows go first: a MAC may move from one NIC to another."""
    session.execute(sa.delete(tables.Nic).where(tables.Nic.vm_id == vm.id))
    session.add_all(nics)
    session.flush()


def names_of(session: Session, sort: type[Any], *where: Any, field: str = "name", most: int = 5) -> list[str]:
    """A few names of the rows that fit, to tell a person."""
    column = getattr(sort, field)
    return [str(name) for name in session.execute(sa.select(column).where(*where).limit(most)).scalars()]
