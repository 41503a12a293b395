"""VMs as they run: start, shut down, power off.

A start is never assumed to have failed. While its end is unknown the VM stays `starting` on that host, is started
nowhere else, and the host's heartbeats (or a look) settle it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from contracts import errors, hostagent
from services.inventory import hosts, leases, peers, places, powers, store, store_world, tables, views
from services.inventory.scene import Scene

Ask = dict[str, Any]
# An agent begins nothing after the deadline, but what it began then may take this much longer to show in its lists.
LATE_START = dt.timedelta(seconds=30)
# After one of these a VM may run all the same, so the state waits for QEMU's own word.
_UNSETTLED = (errors.VmWrongState,)


@dataclass(frozen=True)
class Errand:
    """One ask of one host about one VM. `before`: the state that a refusal brings back."""

    vm_id: str
    host_id: str
    spec: Ask
    before: powers.Power


# -- start ------------------------------------------------------------------------------------------------


def start(scene: Scene, ask: Ask) -> Ask:
    leases.move(scene, ask["id"])
    shown, errand = scene.write(lambda session: _begin_start(scene, session, ask))
    if errand is None:
        return shown
    again = errand.before.state == "starting"
    outcome = peers.attempt("start_vm", lambda: scene.peers.start_vm(errand.host_id, errand.spec), again)
    outcome = leases.named(scene, errand.vm_id, outcome)
    shown = scene.write(lambda session: _settle_start(scene, session, errand, outcome))
    outcome.give()
    return shown


def _begin_start(scene: Scene, session: Session, ask: Ask) -> tuple[Ask, Errand | None]:
    vm = store.hold(session, tables.Vm, ask["id"])
    here = ask["host_id"] in (None, vm.host_id)
    if vm.state in ("running", "paused") and here:
        return store.show(session, vm), None
    if not (vm.state == "starting" and here):
        powers.need(vm.id, vm.state, "starting", "down", reason=vm.reason)
    plugged = store.with_domains(session, store.hold_disks(session, vm.id))
    host_id = _host_for(scene, session, vm, ask["host_id"], leased=leases.wanted(session, vm, plugged))
    _check_disks(plugged)
    nics = store.nics_of(session, vm.id).get(vm.id, [])
    lease = leases.for_start(session, vm, host_id, plugged)
    errand = Errand(vm.id, host_id, views.vm_spec(vm, nics, plugged, lease), store_world.power_of(vm))
    vm.asked_until = scene.until(hostagent.start_vm)
    until = vm.asked_until + LATE_START
    hosts.set_power(scene, session, vm, powers.starting(errand.before, host_id, scene.now(), until))
    return store.show(session, vm), errand


def _host_for(scene: Scene, session: Session, vm: tables.Vm, wanted: str | None, *, leased: bool) -> str:
    """The host that is named, the one where a start is under way, or the one with the most free memory."""
    known = store_world.places_of(session, cluster_id=vm.cluster_id)
    named = vm.host_id if vm.state == "starting" else wanted
    if named is None:
        return places.choose(known, "cluster", vm.cluster_id, scene.settings.clock_limit, leased=leased)
    place = next((place for place in known if place.host_id == named), None)
    if place is None:
        store.get(session, tables.Host, named)
        raise errors.NoHost(kind="cluster", id=vm.cluster_id, reason=f"host {named} is in another cluster")
    places.check(place, scene.settings.clock_limit)
    return named


def _check_disks(plugged: list[tuple[tables.Disk, tables.StorageDomain]]) -> None:
    for disk, domain in plugged:
        if disk.state != "ok":
            raise errors.DiskWrongState(disk_id=disk.id, state=disk.state, action="starting its VM", needs="ok")
        if domain.state != "active":
            raise errors.DomainNotActive(domain_id=domain.id, state=domain.state)


def _settle_start(scene: Scene, session: Session, errand: Errand, outcome: peers.Outcome) -> Ask:
    vm = store.hold(session, tables.Vm, errand.vm_id)
    power = store_world.power_of(vm)
    if vm.host_id != errand.host_id:  # reports have said something else meanwhile, and they are nearer to QEMU
        return store.show(session, vm)
    vm.asked_until = scene.now()
    hosts.set_power(scene, session, vm, _after_start(scene, power, outcome))
    return store.show(session, vm)


def _after_start(scene: Scene, power: powers.Power, outcome: peers.Outcome) -> powers.Power:
    now = scene.now()
    if outcome.facts is not None:
        return powers.answered(power, outcome.facts["state"], outcome.facts["reason"], now)
    if isinstance(outcome.refused, errors.VmUnsure):
        return powers.answered(power, "unsure", str(outcome.refused), now)
    if outcome.unknown is not None or isinstance(outcome.refused, _UNSETTLED):
        return powers.wait(power, str(outcome.problem))
    if power.state in ("starting", "unknown"):
        return powers.down(power, now, f"it could not be started: {outcome.refused}")
    return power


# -- stop -------------------------------------------------------------------------------------------------


def shut_down(scene: Scene, ask: Ask) -> Ask:
    """Ask the guest; it is down when QEMU has ended."""
    return _stop(scene, ask, "shutting_down", ("running", "shutting_down"))


def power_off(scene: Scene, ask: Ask) -> Ask:
    """End QEMU."""
    return _stop(scene, ask, "powering_off", ("running", "paused", "unsure", "shutting_down", "powering_off"))


def _stop(scene: Scene, ask: Ask, state: str, allowed: tuple[str, ...]) -> Ask:
    shown, errand = scene.write(lambda session: _begin_stop(scene, session, ask, state, allowed))
    if errand is None:
        return shown
    promise = scene.peers.shut_down_vm if state == "shutting_down" else scene.peers.power_off_vm
    outcome = peers.attempt(state, lambda: promise(errand.host_id, errand.vm_id))
    shown = scene.write(lambda session: _settle_stop(scene, session, errand, state, outcome))
    outcome.give()
    return shown


def _begin_stop(
    scene: Scene, session: Session, ask: Ask, state: str, allowed: tuple[str, ...]
) -> tuple[Ask, Errand | None]:
    vm = store.hold(session, tables.Vm, ask["id"])
    if vm.state == "down":
        return store.show(session, vm), None
    powers.need(vm.id, vm.state, state.replace("_", " "), *allowed, reason=vm.reason)
    if vm.host_id is None:
        raise errors.VmWrongState(vm_id=vm.id, state=vm.state, action=state, needs="on a host")
    hosts.reach(scene, session, vm.host_id, "up", "problem")
    power = store_world.power_of(vm)
    hosts.set_power(scene, session, vm, powers.stopping(power, state, scene.now()))
    return store.show(session, vm), Errand(vm.id, vm.host_id, {}, power)


def _settle_stop(scene: Scene, session: Session, errand: Errand, state: str, outcome: peers.Outcome) -> Ask:
    vm = store.find(session, tables.Vm, errand.vm_id)
    if vm is None or vm.host_id != errand.host_id or vm.state != state:
        return store.show(session, vm) if vm else {}
    power, now = store_world.power_of(vm), scene.now()
    if outcome.facts is not None and outcome.facts["state"] == "down":
        power = powers.down(power, now)
    elif outcome.refused is not None:
        power = powers.back(power, errand.before, now)
    elif outcome.unknown is not None:
        power = powers.wait(power, str(outcome.unknown))
    hosts.set_power(scene, session, vm, power)
    return store.show(session, vm)


# -- afterwards -------------------------------------------------------------------------------------------


def look(scene: Scene, vm_id: str) -> None:
    """Ask the host of a VM whose start has an unknown end; raises what the ask ends with."""

    def begin(session: Session) -> str | None:
        vm = store.find(session, tables.Vm, vm_id)
        if vm is None or vm.state != "starting" or vm.asked_until > scene.now():
            return None
        vm.asked_until = scene.until(hostagent.look_vm)
        return vm.host_id

    host_id = scene.write(begin)
    if host_id is None:
        return
    asked_at = scene.now()
    facts = scene.peers.look_vm(host_id, vm_id)
    report = powers.Report(host_id, facts["state"], asked_at, facts["reason"], facts["paused_by"] == "agent")

    def settle(session: Session) -> None:
        vm = store.find(session, tables.Vm, vm_id)
        if vm is not None:
            hosts.set_power(scene, session, vm, powers.follow(store_world.power_of(vm), report, scene.patience))

    scene.write(settle)
