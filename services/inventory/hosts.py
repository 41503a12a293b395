"""Hosts: rows, heartbeats, silence. What a host reports moves the states of its VMs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import clock
from contracts import errors
from services.inventory import beats, centers, places, powers, store, store_world, tables
from services.inventory.scene import Scene

Ask = dict[str, Any]
MOST_HOSTS = 2000  # of a lockspace of 1 MiB


def create(scene: Scene, session: Session, ask: Ask) -> Ask:
    row = store.repeated(session, tables.Host, ask)
    if row is None:
        cluster = store.get(session, tables.Cluster, ask["cluster_id"])
        store.free_name(session, tables.Host, ask["name"])
        made = {"version": 1, "created_at": scene.now(), "body_hash": store.body_hash(tables.Host, ask)}
        row = tables.Host(**ask, **made, state="new", sequence=-1, replaced=[], lockspaces=[])
        row.sanlock_id = _free_number(session, cluster.data_center_id)
        store.add(session, row)
        scene.strangers.discard(row.id)
        scene.log.info(f'host "{row.name}" was added', host_id=row.id)
    return store.show(session, row)


def _free_number(session: Session, data_center_id: str) -> int:
    """The lowest number in its lockspaces that no host of the data center has. Raises LimitExceeded."""
    store.hold(session, tables.DataCenter, data_center_id)  # so that two hosts added at once do not get the same
    taken = set(session.execute(of_center(data_center_id, tables.Host.sanlock_id)).scalars())
    number = next(number for number in range(1, MOST_HOSTS + 2) if number not in taken)
    if number > MOST_HOSTS:
        raise errors.LimitExceeded(what="hosts of one data center", value=number, limit=MOST_HOSTS)
    return number


def of_center(data_center_id: str, column: Any) -> sa.Select[Any]:
    """A column of the data center's hosts."""
    return sa.select(column).join(tables.Cluster).where(tables.Cluster.data_center_id == data_center_id)


def delete(scene: Scene, session: Session, ask: Ask) -> Ask:
    row = store.hold(session, tables.Host, ask["id"], ask["version"])
    centers.refuse_in_use(row, vm=[vm.name for vm in store_world.vms_on(session, row.id)[:5]])
    store.drop(session, row)
    scene.log.info(f'host "{row.name}" was deleted', host_id=row.id)
    return {"id": row.id}


# -- heartbeats -------------------------------------------------------------------------------------------


def hear_heartbeat(scene: Scene, session: Session, news: Ask) -> None:
    """A host lives, and says what runs on it."""
    row = store.find(session, tables.Host, news["host_id"])
    if row is None:
        _log_stranger(scene, news["host_id"])
        return
    now, sent_clock = scene.now(), clock.parse(news["clock"])
    pulse = beats.hear(_pulse(row), news["agent_id"], news["sequence"], sent_clock, now)
    if pulse is None:
        return
    row.last_seen = now
    _take(scene, session, row, pulse, news)
    _follow_list(scene, session, row, news, min(now, beats.sent_at(sent_clock, pulse.offset)))


def hear_vm(scene: Scene, session: Session, news: Ask) -> None:
    """One VM changed on a host."""
    row = session.get(tables.Host, news["host_id"])
    if row is None:
        _log_stranger(scene, news["host_id"])
        return
    vm = store.find(session, tables.Vm, news["vm_id"])
    if vm is None:
        _log_strange_vm(scene, row, news["vm_id"])
        return
    sent = min(scene.now(), beats.sent_at(clock.parse(news["clock"]), row.clock_offset))
    report = _report(row.id, news, sent)
    set_power(scene, session, vm, powers.follow(store_world.power_of(vm), report, scene.patience))


def _take(scene: Scene, session: Session, row: tables.Host, pulse: beats.Pulse, news: Ask) -> None:
    """Keep what the beat says of the host itself; only what a user would call a change is told."""
    limit = scene.settings.clock_limit
    was_off, is_off = abs(row.clock_offset or 0.0) > limit, abs(pulse.offset or 0.0) > limit
    state = "up" if news["problem"] is None else "problem"
    row.agent_id, row.sequence, row.replaced = pulse.agent_id, pulse.sequence, list(pulse.replaced)
    row.clock_offset, row.lower_since, row.lower_best = pulse.offset, pulse.lower_since, pulse.lower_best
    told = {"state": state, "problem": news["problem"], "facts": news["facts"], "boot_id": news["boot_id"]}
    told["lockspaces"] = news["lockspaces"]
    if all(getattr(row, name) == value for name, value in told.items()) and was_off == is_off:
        return
    if (row.state, row.problem) != (state, news["problem"]):
        why = f": {news['problem']}" if news["problem"] else ""
        scene.log.info(f'host "{row.name}" is {state}{why}', host_id=row.id, before=row.state)
    if was_off != is_off:
        scene.log.warning(f'the clock of host "{row.name}" is {pulse.offset:+.1f} s off', host_id=row.id)
    store.change(session, row, **told)


def _follow_list(scene: Scene, session: Session, host: tables.Host, news: Ask, sent: dt.datetime) -> None:
    listed = {facts["vm_id"]: facts for facts in news["vms"]}
    complete = news["problem"] is None
    seen = store_world.vms_touched(session, host.id, listed)
    for strange in listed.keys() - {vm.id for vm in seen}:
        _log_strange_vm(scene, host, strange)
    for vm in seen:
        facts = listed.get(vm.id)
        if facts is None and not complete:
            continue
        report = _report(host.id, facts or {"state": "absent"}, sent)
        power = store_world.power_of(vm)
        if _differs(power, powers.follow(power, report, scene.patience)):
            held = store.hold(session, tables.Vm, vm.id)  # held only now: most beats change nothing
            set_power(scene, session, held, powers.follow(store_world.power_of(held), report, scene.patience))


def _report(host_id: str, facts: Ask, sent: dt.datetime) -> powers.Report:
    by_agent = facts.get("paused_by") == "agent"
    return powers.Report(host_id, facts["state"], sent, facts.get("reason", ""), by_agent)


def _pulse(row: tables.Host) -> beats.Pulse:
    clock_facts = (row.clock_offset, row.lower_since, row.lower_best)
    return beats.Pulse(row.agent_id, row.sequence, tuple(row.replaced), *clock_facts)


def _log_stranger(scene: Scene, host_id: str) -> None:
    if scene.is_new_stranger(host_id):
        scene.log.warning("an agent with an unknown host id is heard; it is ignored", host_id=host_id)


def _log_strange_vm(scene: Scene, host: tables.Host, vm_id: str) -> None:
    if scene.is_new_stranger(vm_id):
        scene.log.warning(f'host "{host.name}" reports a VM that is not in the inventory', vm_id=vm_id)


# -- silence ----------------------------------------------------------------------------------------------


def note_silence(scene: Scene, session: Session) -> None:
    """Hosts that missed their heartbeats are non_responsive; what ran there is unknown, not down."""
    now = scene.now()
    grace = scene.settings.heartbeat_interval * scene.settings.heartbeat_grace
    for host in store_world.silent_hosts(session, now - dt.timedelta(seconds=grace)):
        store.change(session, host, state="non_responsive")
        scene.log.warning(f'host "{host.name}" is silent for {grace:g} s', host_id=host.id)
        for vm in store_world.vms_on(session, host.id):
            if vm.host_id == host.id:
                set_power(scene, session, vm, powers.silent(store_world.power_of(vm), now))


# -- VM states --------------------------------------------------------------------------------------------


def set_power(scene: Scene, session: Session, vm: tables.Vm, power: powers.Power) -> None:
    """The one place where a VM's state is written: stores, logs one sentence, tells one event."""
    before = store_world.power_of(vm)
    vm.since, vm.trust_after, vm.heard, vm.also_on = power.since, power.trust_after, power.heard, power.also_on
    if (before.state, before.reason, before.host_id) == (power.state, power.reason, power.host_id):
        return
    store.change(session, vm, state=power.state, reason=power.reason, host_id=power.host_id)
    log = scene.log.warning if power.state in ("unsure", "unknown") else scene.log.info
    log(_sentence(session, vm), vm_id=vm.id, host_id=vm.host_id, before=before.state)


def _sentence(session: Session, vm: tables.Vm) -> str:
    host = session.get(tables.Host, vm.host_id) if vm.host_id else None
    where = f' on host "{host.name}"' if host else ""
    why = f": {vm.reason}" if vm.reason else ""
    return f'VM "{vm.name}" is {vm.state.replace("_", " ")}{where}{why}'


def _differs(one: powers.Power, other: powers.Power) -> bool:
    """Whether a change is worth a write; when a report was heard alone is not."""
    names = ("state", "reason", "host_id", "also_on", "since", "trust_after")
    return any(getattr(one, name) != getattr(other, name) for name in names)


# -- choosing ---------------------------------------------------------------------------------------------


def pick(scene: Scene, session: Session, data_center_id: str, prefer: str | None) -> str:
    """A host of the data center for work on its storage: the preferred one if it is fit, else any."""
    limit = scene.settings.clock_limit
    known = store_world.places_of(session, data_center_id=data_center_id)
    fit = [place for place in known if place.host_id == prefer and places.is_fit(place, limit)]
    return places.choose(fit or known, "data center", data_center_id, limit)


def reach(scene: Scene, session: Session, host_id: str, *states: str) -> None:
    """Check that this host can be asked: in one of these states, with a clock that is right."""
    place = store_world.place_of(store.get(session, tables.Host, host_id))
    places.check(place, scene.settings.clock_limit, *states)
