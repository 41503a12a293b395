"""Disks: an agent makes and removes their images, we keep what exists and where it is plugged.

As with domains the row is committed before the agent is asked; see there. A disk begins empty, thin on a template's
disk, or as a copy of another; a copy takes its time: its row stays `creating`, and `tidy.follow` asks again and again.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from contracts import errors, hostagent
from services.inventory import hosts, peers, powers, sources, store, tables, views
from services.inventory.scene import Scene

Ask = dict[str, Any]
MOST = 64  # disks of one VM, the promise's limit
_ASKS = {"new": hostagent.create_volume, "thin": hostagent.create_thin_disk, "copy": hostagent.copy_disk}
_VOLUMES = uuid.UUID("5f0f8c3e-6a55-4c39-9d9c-6d1a3e0d9a10")


@dataclass(frozen=True)
class Errand:
    """One ask of one host about one disk. `before`: the state that a refusal brings back. `source`: the disk that it
    is a copy of or thin on, with that one's volume; `shared`: it is a template's. `again`: it is not the first ask."""

    id: str
    host_id: str
    disk: Ask
    before: str = "ok"
    volume_id: str = ""
    capacity: int = 0
    format: str = ""
    origin: str = "new"
    source: Ask | None = None
    source_volume_id: str = ""
    shared: bool = False
    again: bool = False


def first_volume_of(disk_id: str) -> str:
    """The id of a disk's first volume: always the same, so that a repeated ask names the same volume."""
    return str(uuid.uuid5(_VOLUMES, disk_id))


# -- create -----------------------------------------------------------------------------------------------


def create(scene: Scene, ask: Ask) -> Ask:
    shown, errand = scene.write(lambda session: _begin(scene, session, ask))
    return finish_creation(scene, errand) if errand else shown


def _begin(scene: Scene, session: Session, ask: Ask) -> tuple[Ask, Errand | None]:
    vm = store.find(session, tables.Vm, ask["vm_id"]) if ask["vm_id"] else None
    row = store.repeated(session, tables.Disk, ask)
    if row is not None:
        errand = again(scene, session, row) if row.state in ("creating", "failed") else None
        return store.show(session, row), errand
    domain = _check(session, ask, vm)
    host_id = hosts.pick(scene, session, domain.data_center_id, domain.host_id)
    row = tables.Disk(
        **ask,
        version=1,
        created_at=scene.now(),
        body_hash=store.body_hash(tables.Disk, ask),
        first_volume_id=first_volume_of(ask["id"]),
        state="creating",
        asked_until=scene.until(_ASKS["new"]),
    )
    store.add(session, row)
    _touch(session, vm)
    return store.show(session, row), _errand(session, row, domain, host_id)


def derive(
    scene: Scene, session: Session, source: tables.Disk, place: int, body_hash: str, **fields: Any
) -> tuple[tables.Disk, Errand]:
    """The row of a disk that is made from another one, and what to ask for. `fields`: id, alias, origin, and whose
    disk it is; `place` keeps the order in which guests see their disks."""
    domain = active(session, source.domain_id)
    host_id = hosts.pick(scene, session, domain.data_center_id, domain.host_id)
    row = tables.Disk(
        **fields,
        version=1,
        created_at=scene.now() + dt.timedelta(microseconds=place),
        body_hash=body_hash,
        domain_id=source.domain_id,
        capacity=source.capacity,
        format="cow",
        bus=source.bus,
        boot_order=source.boot_order,
        source_disk_id=source.id,
        host_id=host_id,
        first_volume_id=first_volume_of(fields["id"]),
        state="creating",
        asked_until=scene.until(_ASKS[fields["origin"]]),
    )
    store.add(session, row)
    return row, _errand(session, row, domain, host_id)


def _check(session: Session, ask: Ask, vm: tables.Vm | None) -> tables.StorageDomain:
    if ask["capacity"] % 512:
        raise errors.BadRequest(errors={"capacity": ["Not a multiple of 512."]})
    domain = active(session, ask["domain_id"])
    if ask["vm_id"]:
        if vm is None:
            raise errors.NotFound(kind="vm", id=ask["vm_id"])
        check_fits(session, vm, domain, ask["boot_order"])
    return domain


def check_fits(session: Session, vm: tables.Vm, domain: tables.StorageDomain, boot_order: int | None) -> None:
    """Whether a disk of that domain can be plugged into this VM."""
    powers.need(vm.id, vm.state, "plugging a disk", "down", reason=vm.reason)
    if vm.data_center_id != domain.data_center_id:
        raise errors.BadRequest(errors={"vm_id": ["The VM and the disk's domain are in different data centers."]})
    others = store.disks_of(session, vm.id).get(vm.id, [])
    if len(others) >= MOST:
        raise errors.LimitExceeded(what=f"The number of disks of VM {vm.name}", value=len(others) + 1, limit=MOST)
    if boot_order is not None and any(other.boot_order == boot_order for other in others):
        raise errors.AlreadyExists(kind="disk", field="boot order", value=boot_order)


def active(session: Session, domain_id: str) -> tables.StorageDomain:
    domain = store.get(session, tables.StorageDomain, domain_id)
    if domain.state != "active":
        raise errors.DomainNotActive(domain_id=domain.id, state=domain.state)
    return domain


def _errand(
    session: Session, row: tables.Disk, domain: tables.StorageDomain, host_id: str, before: str = "ok"
) -> Errand:
    errand = Errand(row.id, host_id, views.disk_ref(row, domain), before, row.first_volume_id, row.capacity, row.format)
    if row.origin == "new" or row.state == "deleting":
        return errand
    source = store.get(session, tables.Disk, str(row.source_disk_id))
    ref = views.disk_ref(source, store.get(session, tables.StorageDomain, source.domain_id))
    shared = row.template_id is not None
    return replace(errand, origin=row.origin, source=ref, source_volume_id=source.first_volume_id, shared=shared)


def _maker(scene: Scene, session: Session, row: tables.Disk, domain: tables.StorageDomain) -> str:
    """Whom to ask about a disk: the host that copies it knows how far it is, and can stop. Another one only where that
    one cannot be asked; the lock on the image keeps the two apart."""
    return hosts.pick(scene, session, domain.data_center_id, row.host_id or domain.host_id)


def again(scene: Scene, session: Session, row: tables.Disk) -> Errand:
    """Ask once more for a held disk that is not made yet."""
    domain = active(session, row.domain_id)
    host_id = row.host_id = _maker(scene, session, row, domain)
    if row.template_id is not None:
        sources.lock(session, row)
    until = scene.until(_ASKS[row.origin])
    if row.state == "creating" and row.copied is not None:  # a copy that goes on is no news
        row.asked_until = until
    else:
        problem = row.problem or "its request was interrupted"
        store.change(session, row, state="creating", problem=problem, asked_until=until)
    return replace(_errand(session, row, domain, host_id), again=True)


def finish_creation(scene: Scene, errand: Errand) -> Ask:
    """Ask the agent and note how it ended; raises what it ended with. A copy may go on."""

    def ask() -> Ask:
        own = (errand.host_id, errand.disk, errand.volume_id)
        if errand.source is None:
            return scene.peers.create_volume(*own, errand.capacity, errand.format)
        if errand.origin == "copy":
            return scene.peers.copy_disk(*own, errand.source, errand.shared)
        return scene.peers.create_thin_disk(*own, errand.source["disk_id"], errand.source_volume_id)

    outcome = peers.attempt(
        {"new": "create_disk", "copy": "copy_disk", "thin": "create_thin_disk"}[errand.origin], ask, errand.again
    )
    shown = scene.write(lambda session: _settle_creation(scene, session, errand.id, outcome))
    outcome.give()
    return shown


def finish_creations(scene: Scene, errands: list[Errand]) -> None:
    """One after the other; raises the first refusal. What is unknown, or goes on, is the tidy's."""
    for errand in errands:
        try:
            finish_creation(scene, errand)
        except peers.UNKNOWN as problem:
            scene.log.info(f"disk {errand.id} is made later: {problem}", disk_id=errand.id)


def _settle_creation(scene: Scene, session: Session, id_: str, outcome: peers.Outcome) -> Ask:
    found = held(session, id_)
    if found is None or found[0].state != "creating":
        return store.show(session, found[0]) if found else {}
    row, vm = found
    if outcome.facts is not None and outcome.facts.get("state") == "copying":
        note_progress(scene, session, row, outcome.facts)
        return store.show(session, row)
    if outcome.facts is not None:
        size = outcome.facts.get("copied")
        store.change(session, row, state="ok", problem=None, copied=size, to_copy=size)
        scene.log.info(f'disk "{row.alias}" was created', disk_id=row.id)
    elif outcome.refused is not None and row.problem is None and row.origin == "new":
        store.drop(session, row)
        scene.log.info(f'disk "{row.alias}" was not created: {outcome.refused}', disk_id=row.id)
    else:  # an earlier ask may have left something on the storage, so the row stays
        state = "creating" if outcome.unknown else "failed"
        store.change(session, row, state=state, problem=str(outcome.problem))
        scene.log.warning(f'disk "{row.alias}" is {state}: {outcome.problem}', disk_id=row.id)
    if row.template_id is not None and row.state != "creating":
        sources.settle(scene, session, row)
    _touch(session, vm)
    return store.show(session, row)


def note_progress(scene: Scene, session: Session, row: tables.Disk, facts: Ask) -> None:
    """A copy goes on: nobody asks now, so the next look is due."""
    row.asked_until = scene.now()
    if (row.copied, row.problem) != (facts["copied"], None):
        store.change(session, row, copied=facts["copied"], to_copy=facts["total"], problem=None)


def held(session: Session, id_: str) -> tuple[tables.Disk, tables.Vm | None] | None:
    """The disk and its VM, held; None if the disk is gone. Of a template's disk its source and the template first."""
    try:
        seen = store.get(session, tables.Disk, id_)
        if seen.template_id is not None:
            sources.hold(session, seen)
        return store.hold_disk(session, id_)
    except errors.NotFound:
        return None


def _touch(session: Session, vm: tables.Vm | None) -> None:
    """A VM shows its disks: their change is its change."""
    if vm is not None:
        store.change(session, vm)


# -- plug -------------------------------------------------------------------------------------------------


def plug(scene: Scene, ask: Ask) -> Ask:
    with scene.database.read() as session:
        store.check_version(store.get(session, tables.Disk, ask["id"]), ask["version"])
    scene.peers.check_idle(ask["id"])
    return scene.write(lambda session: _plug(scene, session, ask))


def _plug(scene: Scene, session: Session, ask: Ask) -> Ask:
    target = store.hold(session, tables.Vm, ask["vm_id"]) if ask["vm_id"] else None
    disk, vm = store.hold_disk(session, ask["id"], ask["version"])
    if disk.vm_id == ask["vm_id"]:
        return store.show(session, disk)
    refuse_templates(session, disk)
    if vm is not None and target is not None:
        raise errors.StillInUse(kind="disk", id=disk.id, by=f"vm {vm.name}")
    if disk.state != "ok":
        raise errors.DiskWrongState(disk_id=disk.id, state=disk.state, action="plugging", needs="ok")
    if target is not None:
        check_fits(session, target, store.get(session, tables.StorageDomain, disk.domain_id), disk.boot_order)
    if vm is not None:
        powers.need(vm.id, vm.state, "unplugging a disk", "down", reason=vm.reason)
    store.change(session, disk, vm_id=ask["vm_id"])
    _touch(session, target or vm)
    word = f'plugged into VM "{target.name}"' if target else f'unplugged from VM "{vm.name if vm else ""}"'
    scene.log.info(f'disk "{disk.alias}" was {word}', disk_id=disk.id)
    return store.show(session, disk)


# -- delete -----------------------------------------------------------------------------------------------


def delete(scene: Scene, ask: Ask) -> Ask:
    with scene.database.read() as session:
        _check_version_unless_deleting(store.get(session, tables.Disk, ask["id"]), ask)
    scene.peers.check_idle(ask["id"])
    finish_deletion(scene, scene.write(lambda session: _begin_deletion(scene, session, ask)))
    return {"id": ask["id"]}


def _check_version_unless_deleting(row: tables.Disk, ask: Ask) -> None:
    if row.state != "deleting":  # a repeat names the version that it was deleted with
        store.check_version(row, ask["version"])


def _begin_deletion(scene: Scene, session: Session, ask: Ask) -> Errand:
    row, vm = store.hold_disk(session, ask["id"])
    _check_version_unless_deleting(row, ask)
    refuse_templates(session, row)
    refuse_locked(row)
    if vm is not None:
        powers.need(vm.id, vm.state, "deleting a disk", "down", reason=vm.reason)
    if row.state == "creating" and row.asked_until > scene.now():
        raise errors.DiskWrongState(disk_id=row.id, state=row.state, action="deleting", needs="ok or failed")
    errand = deleting(scene, session, row)
    _touch(session, vm)
    return errand


def refuse_templates(session: Session, row: tables.Disk) -> None:
    """A template's disk goes with its template and is plugged nowhere: a guest would write to it."""
    if row.template_id is not None:
        template = store.get(session, tables.Template, row.template_id)
        raise errors.StillInUse(kind="disk", id=row.id, by=f"template {template.name}")


def refuse_locked(row: tables.Disk) -> None:
    if row.state == "locked":
        raise errors.DiskWrongState(disk_id=row.id, state="being copied", action="deleting it", needs="idle")


def deleting(scene: Scene, session: Session, row: tables.Disk) -> Errand:
    """Mark a held disk and answer what to ask for."""
    domain = active(session, row.domain_id)
    host_id = _maker(scene, session, row, domain)
    # one that was never finished is no whole disk, whatever becomes of its deletion
    unfinished = row.state == "failed" or (row.state == "creating" and row.origin != "new")
    again = row.state == "deleting"
    if again:  # what it was is not known any more, unless it was whole for sure
        unfinished = row.template_id is not None or row.copied != row.to_copy
    before = "failed" if unfinished else "ok"
    store.change(session, row, state="deleting", asked_until=scene.until(hostagent.delete_disk))
    return replace(_errand(session, row, domain, host_id, before), again=again)


def finish_deletion(scene: Scene, errand: Errand) -> None:
    """Ask the agent, then forget the disk; raises what the ask ended with."""

    def ask() -> Ask:
        # a second look: between the first and the mark somebody may have begun to work on the disk
        scene.peers.check_idle(errand.id)
        return scene.peers.delete_disk(errand.host_id, errand.disk)

    outcome = peers.attempt("delete_disk", ask, errand.again)
    scene.write(lambda session: _settle_deletion(scene, session, errand, outcome))
    outcome.give()


def _settle_deletion(scene: Scene, session: Session, errand: Errand, outcome: peers.Outcome) -> None:
    found = held(session, errand.id)
    if found is None:
        return
    row, vm = found
    if outcome.facts is not None:
        store.drop(session, row)
        scene.log.info(f'disk "{row.alias}" was deleted', disk_id=row.id)
    else:
        state = "deleting" if outcome.unknown else errand.before
        keeps = outcome.unknown is not None or state == "failed"
        store.change(session, row, state=state, problem=str(outcome.problem) if keeps else None)
        scene.log.warning(f'disk "{row.alias}" was not deleted: {outcome.problem}', disk_id=row.id)
    _touch(session, vm)


# -- afterwards -------------------------------------------------------------------------------------------


def resume(scene: Scene, id_: str) -> None:
    """Finish what a crash or an unknown answer left; raises what the ask ends with."""

    def begin(session: Session) -> tuple[str, Errand] | None:
        found = held(session, id_)
        if found is None or found[0].asked_until > scene.now():
            return None
        row, vm = found
        if row.state == "creating":
            return "creating", again(scene, session, row)
        if row.state != "deleting" or row.template_id is not None or (vm is not None and vm.state == "deleting"):
            return None  # the VM's or the template's own deletion takes its disks along
        return "deleting", deleting(scene, session, row)

    started = scene.write(begin)
    if started is None:
        return
    if started[0] == "creating":
        finish_creation(scene, started[1])
    else:
        finish_deletion(scene, started[1])
