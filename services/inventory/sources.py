"""The disks that a template is being made from: locked until the copies are made, and how the template fares.

Order of locks: the source's VM, the source, the template, the template's disk.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from contracts import errors
from services.inventory import powers, store, tables
from services.inventory.scene import Scene


def hold(session: Session, row: tables.Disk) -> None:
    """Everything that may change with a template's disk, in the order of locks."""
    _source(session, row)
    if row.template_id is not None:
        store.find(session, tables.Template, row.template_id)


def _source(session: Session, row: tables.Disk) -> tuple[tables.Disk, tables.Vm | None] | None:
    """The source and its VM, held; None if it is gone."""
    try:
        return store.hold_disk(session, str(row.source_disk_id))
    except errors.NotFound:
        return None


def take(session: Session, source: tables.Disk) -> None:
    """Lock a held disk of a held VM that is down."""
    if source.state != "ok":
        action = "making a template from its VM"
        raise errors.DiskWrongState(disk_id=source.id, state=source.state, action=action, needs="ok")
    store.change(session, source, state="locked")


def lock(session: Session, row: tables.Disk) -> None:
    """Before a copy that was refused is asked for again: the source must be as still as it was the first time."""
    found = _source(session, row)
    if found is None:
        raise errors.NotFound(kind="disk", id=str(row.source_disk_id))
    source, vm = found
    if row.state == "creating" and source.state == "locked":
        return
    if vm is not None:
        powers.need(vm.id, vm.state, "making a template from it", "down", reason=vm.reason)
    take(session, source)
    if vm is not None:
        store.change(session, vm)


def settle(scene: Scene, session: Session, row: tables.Disk) -> None:
    """A template's disk is made, has failed, or is to be deleted: its source is free, and the template follows."""
    found = _source(session, row)
    if found is not None and found[0].state == "locked":
        store.change(session, found[0], state="ok")
        if found[1] is not None:
            store.change(session, found[1])
    template = store.find(session, tables.Template, str(row.template_id))
    if template is None or template.state not in ("creating", "failed"):
        return
    disks = store.disks_of_templates(session, template.id).get(template.id, [])
    failed = next((disk for disk in disks if disk.state == "failed"), None)
    state = "failed" if failed else "ok" if all(disk.state == "ok" for disk in disks) else "creating"
    if state != template.state:
        word = f"is {state}" + (f": {failed.problem}" if failed else "")
        scene.log.info(f'template "{template.name}" {word}', template_id=template.id)
    store.change(session, template, state=state, problem=failed.problem if failed else None)
