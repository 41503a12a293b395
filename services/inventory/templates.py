"""Templates: the hardware of a VM that is down, and a copy of each of its disks.

The rows are committed as `creating` before an agent is asked, the VM's disks are `locked` until the copies are made
(sources.py), each copy is followed like any disk's creation (disks.py). What an agent refuses at once undoes it all;
what fails later leaves the template `failed` with the reason, to be asked for again or deleted.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy.orm import Session

from contracts import errors, hostagent
from services.inventory import disks, peers, powers, sources, store, tables
from services.inventory.scene import Scene

Ask = dict[str, Any]
_HARDWARE = ("memory", "cpus", "firmware", "display", "boot")
_NIC = ("name", "model", "network", "linked")
_TRIES, _PAUSE = 40, 0.25  # a deletion waits so often, so many seconds, for an ask that is under way


# -- create -----------------------------------------------------------------------------------------------


def create(scene: Scene, ask: Ask) -> Ask:
    with scene.database.read() as session:
        fresh = session.get(tables.Template, ask["id"]) is None
    if fresh:
        scene.peers.check_idle(ask["vm_id"])
    errands = scene.write(lambda session: _begin(scene, session, ask))
    try:
        disks.finish_creations(scene, errands)
    except errors.Problem:
        if fresh:
            _take_back(scene, ask["id"])
        raise
    with scene.database.read() as session:
        return store.show(session, store.get(session, tables.Template, ask["id"]))


def _begin(scene: Scene, session: Session, ask: Ask) -> list[disks.Errand]:
    vm = store.find(session, tables.Vm, ask["vm_id"])  # before the template: the order of locks
    row = store.repeated(session, tables.Template, ask)
    if row is not None:
        return _again(scene, session, row)
    if vm is None:
        raise errors.NotFound(kind="vm", id=ask["vm_id"])
    powers.need(vm.id, vm.state, "making a template from it", "down", reason=vm.reason)
    store.free_name(session, tables.Template, ask["name"], tables.Template.data_center_id == vm.data_center_id)
    plugged = store.hold_disks(session, vm.id)
    row = tables.Template(
        **ask,
        **{name: getattr(vm, name) for name in (*_HARDWARE, "cluster_id", "data_center_id")},
        nics=[{name: getattr(nic, name) for name in _NIC} for nic in store.nics_of(session, vm.id).get(vm.id, [])],
        version=1,
        created_at=scene.now(),
        body_hash=store.body_hash(tables.Template, ask),
        state="creating" if plugged else "ok",
        asked_until=scene.now(),
    )
    store.add(session, row)
    errands = [_copy(scene, session, row, disk, place) for place, disk in enumerate(plugged)]
    store.change(session, vm)
    scene.log.info(f'template "{row.name}" is being made from VM "{vm.name}"', template_id=row.id, vm_id=vm.id)
    return errands


def _copy(scene: Scene, session: Session, row: tables.Template, disk: tables.Disk, place: int) -> disks.Errand:
    sources.take(session, disk)
    own = {"id": str(uuid.uuid5(uuid.UUID(row.id), disk.id)), "alias": f"{row.name[:240]}-disk{place + 1}"}
    return disks.derive(scene, session, disk, place, row.body_hash, **own, template_id=row.id, origin="copy")[1]


def _again(scene: Scene, session: Session, row: tables.Template) -> list[disks.Errand]:
    """A repeated request finishes what an earlier one left."""
    if row.state not in ("creating", "failed"):
        return []
    left = [disk.id for disk in store.disks_of_templates(session, row.id).get(row.id, []) if disk.state != "ok"]
    found = [disks.held(session, id_) for id_ in left]
    errands = [disks.again(scene, session, held[0]) for held in found if held]
    if errands and row.state == "failed":
        store.change(session, row, state="creating", problem=None)
    return errands


def _take_back(scene: Scene, id_: str) -> None:
    """Undo a request that was refused; what cannot be undone now stays `deleting`, and the tidy goes on."""
    errands = scene.write(lambda session: _mark_again(scene, session, id_))
    try:
        _finish_deletion(scene, id_, errands)
    except errors.Problem as problem:
        scene.log.warning(f"template {id_} could not be taken back yet: {problem}", template_id=id_)


# -- delete -----------------------------------------------------------------------------------------------


def delete(scene: Scene, ask: Ask) -> Ask:
    for left in range(_TRIES, -1, -1):
        try:
            errands = scene.write(lambda session: _begin_deletion(scene, session, ask))
            break
        except errors.DiskBusy:  # the ask how far a copy is
            if not left:
                raise
            scene.clock.sleep(_PAUSE)
    _finish_deletion(scene, ask["id"], errands)
    return {"id": ask["id"]}


def _begin_deletion(scene: Scene, session: Session, ask: Ask) -> list[disks.Errand]:
    row = _hold_all(session, ask["id"])
    if row.state != "deleting":  # a repeat names the version that it was deleted with
        store.check_version(row, ask["version"])
    own = store.disks_of_templates(session, row.id).get(row.id, [])
    users = store.users_of(session, [disk.id for disk in own])
    if users:
        raise errors.StillInUse(kind="template", id=row.id, by=", ".join(users))
    for disk in own:
        if disk.state == "creating" and disk.asked_until > scene.now():
            raise errors.DiskBusy(disk_id=disk.id, flow_id=f"the copy for template {row.name}")
    return _mark(scene, session, row, own)


def _hold_all(session: Session, id_: str) -> tables.Template:
    """The template with its disks and their sources, all held, in the order of locks."""
    store.get(session, tables.Template, id_)
    for disk in store.disks_of_templates(session, id_).get(id_, []):
        disks.held(session, disk.id)
    return store.hold(session, tables.Template, id_)


def _mark(scene: Scene, session: Session, row: tables.Template, own: list[tables.Disk]) -> list[disks.Errand]:
    copying = [disk for disk in own if disk.state == "creating"]
    errands = [disks.deleting(scene, session, disk) for disk in own]
    store.change(session, row, state="deleting", asked_until=scene.until(hostagent.delete_disk))
    for disk in copying:  # nobody but the copy that is under way holds a source
        sources.settle(scene, session, disk)
    return errands


def _mark_again(scene: Scene, session: Session, id_: str) -> list[disks.Errand]:
    row = _hold_all(session, id_)
    return _mark(scene, session, row, store.disks_of_templates(session, id_).get(id_, []))


def _finish_deletion(scene: Scene, id_: str, errands: list[disks.Errand]) -> None:
    for place, errand in enumerate(errands):
        try:
            disks.finish_deletion(scene, errand)
        except errors.Problem as problem:
            if not isinstance(problem, peers.UNKNOWN):
                refused, left = problem, errands[place:]
                whole = place == 0 and all(one.before == "ok" for one in left)
                scene.write(lambda session: _stop_deletion(scene, session, id_, left, whole, refused))  # noqa: B023 - it runs at once
            raise

    def forget(session: Session) -> None:
        row = store.find(session, tables.Template, id_)
        if row is not None:
            store.drop(session, row)
            scene.log.info(f'template "{row.name}" was deleted', template_id=row.id)

    scene.write(forget)


def _stop_deletion(  # noqa: PLR0917 - what is left, and why
    scene: Scene, session: Session, id_: str, left: list[disks.Errand], whole: bool, problem: errors.Problem
) -> None:
    """One disk could not be deleted: the template is what it was, or no whole one any more."""
    row = _hold_all(session, id_)
    before = {errand.id: errand.before for errand in left}
    for disk in store.disks_of_templates(session, id_).get(id_, []):
        if disk.state == "deleting" and disk.id in before:
            store.change(session, disk, state=before[disk.id])
    why = f"it could not be deleted: {problem}"
    store.change(session, row, state="ok" if whole else "failed", problem=why)
    scene.log.warning(f'template "{row.name}" was not deleted: {problem}', template_id=row.id)


def resume(scene: Scene, id_: str) -> None:
    """Finish a deletion that a crash or an unknown answer left."""

    def begin(session: Session) -> list[disks.Errand] | None:
        try:
            row = _hold_all(session, id_)
        except errors.NotFound:
            return None
        if row.state != "deleting" or row.asked_until > scene.now():
            return None
        return _mark(scene, session, row, store.disks_of_templates(session, id_).get(id_, []))

    errands = scene.write(begin)
    if errands is not None:
        _finish_deletion(scene, id_, errands)
