"""VMs as definitions: create, change, delete. What they do when they run is in runs.py."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from contracts import errors, hostagent
from services.inventory import disks, leases, macs, peers, powers, store, store_world, tables
from services.inventory.scene import Scene

Ask = dict[str, Any]
_TEXTS = ("name", "description")
_HARDWARE = ("memory", "cpus", "firmware", "display", "boot")


# -- create and change ------------------------------------------------------------------------------------


def insert(scene: Scene, session: Session, ask: Ask, hardware: Ask) -> tables.Vm:
    """A new VM that is down; `hardware` with nothing left out."""
    cluster = store.get(session, tables.Cluster, ask["cluster_id"])
    store.free_name(session, tables.Vm, ask["name"], tables.Vm.data_center_id == cluster.data_center_id)
    nics = build_nics(session, ask["id"], cluster.data_center_id, hardware["nics"])
    now = scene.now()
    row = tables.Vm(
        **{name: ask[name] for name in ("id", "name", "cluster_id", "description", "template_id")},
        **{name: value for name, value in hardware.items() if name != "nics"},
        data_center_id=cluster.data_center_id,
        version=1,
        created_at=now,
        body_hash=store.body_hash(tables.Vm, ask),
        **_as_columns(powers.down(powers.Power("down", now, now), now)),
        asked_until=now,
    )
    store.add(session, row, nics)
    scene.log.info(f'VM "{row.name}" was created', vm_id=row.id)
    return row


def _as_columns(power: powers.Power) -> Ask:
    times = {"since": power.since, "trust_after": power.trust_after}
    return {"state": power.state, "reason": power.reason, **times}


def change(scene: Scene, session: Session, ask: Ask) -> Ask:
    row = store.hold(session, tables.Vm, ask["id"], ask["version"])
    given = {name: ask[name] for name in (*_TEXTS, *_HARDWARE) if ask[name] is not None}
    news = {name: value for name, value in given.items() if getattr(row, name) != value}
    if any(name in news for name in _HARDWARE) or ask["nics"] is not None:
        powers.need(row.id, row.state, "changing its hardware", "down", reason=row.reason)
    if row.state == "deleting":
        powers.need(row.id, row.state, "changing it", "down")
    if "name" in news:
        inside = tables.Vm.data_center_id == row.data_center_id
        store.free_name(session, tables.Vm, news["name"], inside, but=row.id)
    if ask["nics"] is not None:
        store.set_nics(session, row, build_nics(session, row.id, row.data_center_id, ask["nics"]))
    if news or ask["nics"] is not None:
        store.change(session, row, **news)
        scene.log.info(f'VM "{row.name}" was changed', vm_id=row.id, fields=sorted(news))
    return store.show(session, row)


def build_nics(session: Session, vm_id: str, data_center_id: str, asked: list[Ask]) -> list[tables.Nic]:
    """NIC rows with a MAC each: the one named, the one the NIC had, or the next free one of the pool."""
    if not asked:
        return []
    # held, so that two VMs that are made at once do not draw the same addresses
    pool = store.hold(session, tables.DataCenter, data_center_id)
    had = {nic.id: nic.mac for nic in store.nics_of(session, vm_id).get(vm_id, [])}
    wanted = {nic["id"]: nic["mac"] or had.get(nic["id"]) for nic in asked}
    _check_nics(session, vm_id, asked, wanted)
    drawn = _draw(session, pool, [mac for mac in wanted.values() if mac], sum(not mac for mac in wanted.values()))
    return [
        tables.Nic(**{**nic, "mac": wanted[nic["id"]] or drawn.pop(0)}, vm_id=vm_id, position=place)
        for place, nic in enumerate(asked)
    ]


def _check_nics(session: Session, vm_id: str, asked: list[Ask], wanted: dict[str, str | None]) -> None:
    if len(wanted) < len(asked):
        ids = [nic["id"] for nic in asked]
        twice = next(id_ for id_ in ids if ids.count(id_) > 1)
        raise errors.AlreadyExists(kind="nic", field="id", value=twice)
    named = [mac for mac in wanted.values() if mac]
    for mac in named:
        if named.count(mac) > 1:
            raise errors.MacTaken(mac=mac)
    for taken in store_world.nics_with(session, tables.Nic.mac, named, vm_id):
        raise errors.MacTaken(mac=taken.mac)
    for other in store_world.nics_with(session, tables.Nic.id, list(wanted), vm_id):
        raise errors.AlreadyExists(kind="nic", field="id", value=other.id)


def _draw(session: Session, pool: tables.DataCenter, named: list[str], many: int) -> list[str]:
    if not many:
        return []
    taken = store_world.macs_between(session, pool.mac_first, pool.mac_last)
    return macs.free(pool.mac_first, pool.mac_last, taken.union(named), many)


# -- delete -----------------------------------------------------------------------------------------------


def delete(scene: Scene, ask: Ask) -> Ask:
    """The disks' images first, then the VM: what is left can always be deleted again."""
    with scene.database.read() as session:
        _check_deletable(store.get(session, tables.Vm, ask["id"]), ask)
    scene.peers.check_idle(ask["id"])
    errands = scene.write(lambda session: _begin_deletion(scene, session, ask))
    _finish_deletion(scene, ask["id"], errands)
    return {"id": ask["id"]}


def _check_deletable(row: tables.Vm, ask: Ask) -> None:
    if row.state == "deleting":  # a repeat names the version that it was deleted with
        return
    store.check_version(row, ask["version"])
    powers.need(row.id, row.state, "deleting", "down", reason=row.reason)


def _begin_deletion(scene: Scene, session: Session, ask: Ask) -> list[disks.Errand]:
    row = store.hold(session, tables.Vm, ask["id"])
    _check_deletable(row, ask)
    plugged = store.hold_disks(session, row.id)
    for disk in plugged:
        disks.refuse_locked(disk)
        if disk.state == "creating" and disk.asked_until > scene.now():
            raise errors.DiskWrongState(disk_id=disk.id, state=disk.state, action="deleting", needs="ok or failed")
    return _mark(scene, session, row, plugged)


def _mark(scene: Scene, session: Session, row: tables.Vm, plugged: list[tables.Disk]) -> list[disks.Errand]:
    errands = [disks.deleting(scene, session, disk) for disk in plugged]
    store.change(session, row, state="deleting", reason="", asked_until=scene.until(hostagent.delete_disk))
    return errands


def take_back(scene: Scene, id_: str) -> None:
    """Undo a creation that was refused; what cannot be undone now stays `deleting`, and the tidy goes on."""

    def begin(session: Session) -> list[disks.Errand]:
        row = store.hold(session, tables.Vm, id_)
        return _mark(scene, session, row, store.hold_disks(session, row.id))

    try:
        _finish_deletion(scene, id_, scene.write(begin))
    except errors.Problem as problem:
        scene.log.warning(f"VM {id_} could not be taken back yet: {problem}", vm_id=id_)


def _finish_deletion(scene: Scene, vm_id: str, errands: list[disks.Errand]) -> None:
    held = leases.drop(scene, vm_id)
    stopped = (errands, held) if held is not None else _delete_disks(scene, errands)
    if stopped is not None:
        left, problem = stopped
        raise scene.write(lambda session: _stop_deletion(scene, session, vm_id, left, problem))

    def forget(session: Session) -> None:
        row = store.find(session, tables.Vm, vm_id)
        if row is not None:
            store.drop(session, row)
            scene.log.info(f'VM "{row.name}" was deleted', vm_id=row.id)

    scene.write(forget)


def _delete_disks(scene: Scene, errands: list[disks.Errand]) -> tuple[list[disks.Errand], errors.Problem] | None:
    """One after the other; at the first that fails, what is left and why."""
    for place, errand in enumerate(errands):
        try:
            disks.finish_deletion(scene, errand)
        except errors.Problem as problem:
            return errands[place:], problem
    return None


def _stop_deletion(
    scene: Scene, session: Session, vm_id: str, left: list[disks.Errand], problem: errors.Problem
) -> errors.Problem:
    """One disk could not be deleted. Unknown: the deletion stays open. Refused: the rest is a VM again."""
    row = store.find(session, tables.Vm, vm_id)
    if row is None or isinstance(problem, peers.UNKNOWN):
        return problem
    before = {errand.id: errand.before for errand in left}
    kept = store.hold_disks(session, vm_id)
    for disk in kept:
        if disk.state == "deleting" and disk.id in before:
            store.change(session, disk, state=before[disk.id])
    names = ", ".join(f'"{disk.alias}"' for disk in kept)
    now = scene.now()
    reason = f"it could not be deleted: {problem}"
    store.change(session, row, state="down", reason=reason, since=now)
    scene.log.warning(f'VM "{row.name}" was not deleted, its disks {names} are left: {problem}', vm_id=row.id)
    return errors.StillInUse(kind="vm", id=vm_id, by=f"disks that are left: {names} ({problem})")


def resume(scene: Scene, id_: str) -> None:
    """Finish a deletion that a crash or an unknown answer left."""

    def begin(session: Session) -> list[disks.Errand] | None:
        row = store.find(session, tables.Vm, id_)
        if row is None or row.state != "deleting" or row.asked_until > scene.now():
            return None
        return _mark(scene, session, row, store.hold_disks(session, row.id))

    errands = scene.write(begin)
    if errands is not None:
        _finish_deletion(scene, id_, errands)
