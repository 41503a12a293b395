"""VMs that are made from a template: its hardware, and a disk for each of its disks, thin on it or a full copy.

The VM exists at once and is down; its disks are `creating` until they are made, and until then it does not start.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy.orm import Session

from contracts import errors
from services.inventory import disks, store, tables, vms
from services.inventory.scene import Scene

Ask = dict[str, Any]
_HARDWARE = ("memory", "cpus", "firmware", "display", "boot")
_PLAIN: Ask = {"cpus": 1, "firmware": "bios", "display": "vnc", "boot": None, "nics": []}


def create_vm(scene: Scene, ask: Ask) -> Ask:
    with scene.database.read() as session:
        fresh = session.get(tables.Vm, ask["id"]) is None
    errands = scene.write(lambda session: _begin(scene, session, ask))
    try:
        disks.finish_creations(scene, errands)
    except errors.Problem:
        if fresh:
            vms.take_back(scene, ask["id"])
        raise
    with scene.database.read() as session:
        return store.show(session, store.get(session, tables.Vm, ask["id"]))


def _begin(scene: Scene, session: Session, ask: Ask) -> list[disks.Errand]:
    row = store.repeated(session, tables.Vm, ask)
    if row is not None:
        return _again(scene, session, row)
    template = _template(session, ask)
    vm = vms.insert(scene, session, ask, _hardware(ask, template))
    if template is None:
        return []
    origin = "thin" if ask["clone"] == "thin" else "copy"
    errands = []
    for place, disk in enumerate(store.disks_of_templates(session, template.id).get(template.id, [])):
        own = {"id": str(uuid.uuid5(uuid.UUID(vm.id), disk.id)), "alias": f"{vm.name[:240]}-disk{place + 1}"}
        made = disks.derive(scene, session, disk, place, vm.body_hash, **own, vm_id=vm.id, origin=origin)
        errands.append(made[1])
    store.change(session, vm)
    return errands


def _template(session: Session, ask: Ask) -> tables.Template | None:
    """The template, held so that it is not deleted meanwhile."""
    if ask["template_id"] is None:
        return None
    template = store.hold(session, tables.Template, ask["template_id"])
    if template.state != "ok":
        action = "making a VM from it"
        raise errors.TemplateWrongState(template_id=template.id, state=template.state, action=action, needs="ok")
    cluster = store.get(session, tables.Cluster, ask["cluster_id"])
    if cluster.data_center_id != template.data_center_id:
        reason = "The cluster and the template are in different data centers."
        raise errors.BadRequest(errors={"cluster_id": [reason]})
    return template


def _hardware(ask: Ask, template: tables.Template | None) -> Ask:
    """What was asked for; what was left out is the template's, or plain."""
    if template is None:
        if ask["memory"] is None:
            raise errors.BadRequest(errors={"memory": ["Missing data for required field."]})
        left_out = _PLAIN
    else:
        left_out = {name: getattr(template, name) for name in _HARDWARE}
        left_out["nics"] = [_nic(ask["id"], nic) for nic in template.nics]
    return {name: left_out.get(name) if ask[name] is None else ask[name] for name in (*_HARDWARE, "nics")}


def _nic(vm_id: str, nic: Ask) -> Ask:
    return {**nic, "id": str(uuid.uuid5(uuid.UUID(vm_id), nic["name"])), "mac": None}


def _again(scene: Scene, session: Session, row: tables.Vm) -> list[disks.Errand]:
    """A repeated request finishes what an earlier one left."""
    if row.template_id is None or row.state != "down":
        return []
    held = store.hold_disks(session, row.id)
    left = [disk for disk in held if disk.state in ("creating", "failed") and disk.origin != "new"]
    return [disks.again(scene, session, disk) for disk in left]
