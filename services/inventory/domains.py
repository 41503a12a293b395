"""Storage domains: an agent writes and removes their layout, we keep what exists.

The row is committed before the agent is asked. A refusal undoes it within the request; an unknown end leaves the
row creating (or deleting) with its problem, and a repeat of the request or the tidy finishes it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from contracts import errors, hostagent
from services.inventory import centers, hosts, leases, peers, places, store, store_world, tables, views
from services.inventory.scene import Scene

Ask = dict[str, Any]
NOTABLE = 0.01  # a change of the free space by this part of the whole is told


@dataclass(frozen=True)
class Errand:
    """One ask of one host about one domain. `again`: it is not the first one."""

    id: str
    host_id: str
    domain: Ask
    name: str
    data_center_id: str
    io_timeout: int
    again: bool = False


def _errand(session: Session, row: tables.StorageDomain, host_id: str, again: bool = False) -> Errand:
    center = store.get(session, tables.DataCenter, row.data_center_id)
    return Errand(row.id, host_id, views.domain_ref(row), row.name, center.id, center.io_timeout, again)


# -- create -----------------------------------------------------------------------------------------------


def create(scene: Scene, ask: Ask) -> Ask:
    shown, errand = scene.write(lambda session: _begin(scene, session, ask))
    return _finish_creation(scene, errand) if errand else shown


def _begin(scene: Scene, session: Session, ask: Ask) -> tuple[Ask, Errand | None]:
    row = store.repeated(session, tables.StorageDomain, ask)
    if row is not None:
        unfinished = row.state in ("creating", "failed")
        return store.show(session, row), _again(scene, session, row) if unfinished else None
    store.get(session, tables.DataCenter, ask["data_center_id"])
    store.free_name(session, tables.StorageDomain, ask["name"])
    inside = tables.StorageDomain.data_center_id == ask["data_center_id"]
    store.free_name(session, tables.StorageDomain, ask["path"], inside, field="path")
    row = tables.StorageDomain(
        **{**ask, "host_id": _writer(scene, session, ask)},
        version=1,
        created_at=scene.now(),
        body_hash=store.body_hash(tables.StorageDomain, ask),
        layout=5,
        state="creating",
        asked_until=scene.until(hostagent.create_domain),
    )
    store.add(session, row)
    return store.show(session, row), _errand(session, row, str(row.host_id))


def _writer(scene: Scene, session: Session, ask: Ask) -> str:
    """Which host writes the layout."""
    if ask["host_id"] is None:
        return hosts.pick(scene, session, ask["data_center_id"], None)
    known = store_world.places_of(session, data_center_id=ask["data_center_id"])
    named = next((place for place in known if place.host_id == ask["host_id"]), None)
    if named is None:
        raise errors.NotFound(kind="host", id=ask["host_id"])
    places.check(named, scene.settings.clock_limit)
    return named.host_id


def _again(scene: Scene, session: Session, row: tables.StorageDomain) -> Errand:
    """Ask once more for what was begun, the same host: the directory may exist there only."""
    host_id = row.host_id or hosts.pick(scene, session, row.data_center_id, None)
    hosts.reach(scene, session, host_id, "up")
    problem = row.problem or "its request was interrupted"
    until = scene.until(hostagent.create_domain)
    store.change(session, row, state="creating", problem=problem, asked_until=until)
    return _errand(session, row, host_id, again=True)


def _finish_creation(scene: Scene, errand: Errand) -> Ask:
    def ask() -> Ask:
        wishes = (errand.name, errand.data_center_id, errand.io_timeout)
        return scene.peers.create_domain(errand.host_id, errand.domain, *wishes)

    outcome = peers.attempt("create_domain", ask, errand.again)
    shown = scene.write(lambda session: _settle_creation(scene, session, errand.id, outcome))
    outcome.give()
    leases.watch(scene, errand.host_id)  # the others follow within a heartbeat
    return shown


def _settle_creation(scene: Scene, session: Session, id_: str, outcome: peers.Outcome) -> Ask:
    row = store.find(session, tables.StorageDomain, id_)
    if row is None or row.state != "creating":  # another delivery of the same request was quicker
        return store.show(session, row) if row else {}
    if outcome.facts is not None:
        sizes = {"total": outcome.facts["total"], "free": outcome.facts["free"], "layout": outcome.facts["version"]}
        store.change(session, row, state="active", problem=None, looked_at=scene.now(), **sizes)
        scene.log.info(f'storage domain "{row.name}" is active', domain_id=row.id)
    elif outcome.refused is not None and row.problem is None:
        store.drop(session, row)
        scene.log.info(f'storage domain "{row.name}" was not created: {outcome.refused}', domain_id=row.id)
    else:  # an earlier ask may have left something on the storage, so the row stays
        state = "creating" if outcome.unknown else "failed"
        store.change(session, row, state=state, problem=str(outcome.problem))
        scene.log.warning(f'storage domain "{row.name}" is {state}: {outcome.problem}', domain_id=row.id)
    return store.show(session, row)


# -- delete -----------------------------------------------------------------------------------------------


def delete(scene: Scene, ask: Ask) -> Ask:
    return _finish_deletion(scene, scene.write(lambda session: _begin_deletion(scene, session, ask)))


def _begin_deletion(scene: Scene, session: Session, ask: Ask) -> Errand:
    row = store.hold(session, tables.StorageDomain, ask["id"])
    if row.state != "deleting":  # a repeat names the version that it was deleted with
        store.check_version(row, ask["version"])
    if row.state == "creating" and row.asked_until > scene.now():
        raise errors.StillInUse(kind="domain", id=row.id, by="its creation, which is under way")
    disks = store.names_of(session, tables.Disk, tables.Disk.domain_id == row.id, field="alias")
    centers.refuse_in_use(row, disk=disks)
    return _deleting(scene, session, row)


def _deleting(scene: Scene, session: Session, row: tables.StorageDomain) -> Errand:
    host_id = hosts.pick(scene, session, row.data_center_id, row.host_id)
    again = row.state == "deleting"
    store.change(session, row, state="deleting", asked_until=scene.until(hostagent.delete_domain))
    return _errand(session, row, host_id, again)


def _finish_deletion(scene: Scene, errand: Errand) -> Ask:
    def ask() -> Ask:
        return scene.peers.delete_domain(errand.host_id, errand.domain)

    outcome = peers.attempt("delete_domain", ask, errand.again)
    gone = scene.write(lambda session: _settle_deletion(scene, session, errand.id, outcome))
    if not gone:
        outcome.give()
    return {"id": errand.id}


def _settle_deletion(scene: Scene, session: Session, id_: str, outcome: peers.Outcome) -> bool:
    """Whether the domain is gone."""
    row = store.find(session, tables.StorageDomain, id_)
    if row is None:
        return True
    was_active = row.total is not None
    nothing_there = not was_active and isinstance(outcome.refused, errors.DomainUnusable)
    if outcome.facts is not None or nothing_there:
        store.drop(session, row)
        scene.log.info(f'storage domain "{row.name}" was deleted', domain_id=row.id)
        return True
    if outcome.refused is not None:
        state = "active" if was_active else "failed"
        store.change(session, row, state=state, problem=None if was_active else str(outcome.refused))
    else:
        store.change(session, row, problem=str(outcome.unknown))
    scene.log.warning(f'storage domain "{row.name}" was not deleted: {outcome.problem}', domain_id=row.id)
    return False


# -- afterwards -------------------------------------------------------------------------------------------


def resume(scene: Scene, id_: str) -> None:
    """Finish what a crash or an unknown answer left; raises what the ask ends with."""

    def begin(session: Session) -> tuple[str, Errand] | None:
        row = store.find(session, tables.StorageDomain, id_)
        if row is None or row.asked_until > scene.now():
            return None
        if row.state == "creating":
            return "creating", _again(scene, session, row)
        return ("deleting", _deleting(scene, session, row)) if row.state == "deleting" else None

    found = scene.write(begin)
    if found is not None:
        finish = _finish_creation if found[0] == "creating" else _finish_deletion
        finish(scene, found[1])


def look_at_sizes(scene: Scene) -> None:
    """Ask one host of each active domain for its sizes, if they are old."""

    def stale(session: Session) -> list[Errand]:
        now = scene.now()
        before = now - dt.timedelta(seconds=scene.settings.facts_interval)
        found = []
        for row in store_world.domains_to_look_at(session, before, now):
            try:
                found.append(_errand(session, row, hosts.pick(scene, session, row.data_center_id, row.host_id)))
            except errors.NoHost:
                continue
        return found

    for errand in scene.write(stale):
        _look(scene, errand)


def _look(scene: Scene, errand: Errand) -> None:
    outcome = peers.attempt("look_domain", lambda: scene.peers.look_domain(errand.host_id, errand.domain))

    def keep(session: Session) -> None:
        row = store.find(session, tables.StorageDomain, errand.id)
        if row is None or row.state != "active":
            return
        if outcome.facts is None:
            news = {} if row.problem == str(outcome.problem) else {"problem": str(outcome.problem)}
        else:
            news = _news(row, outcome.facts)
        if news:
            store.change(session, row, **news)

    scene.write(keep)


def _news(row: tables.StorageDomain, facts: Ask) -> Ask:
    """What to store of a look; empty when nothing notable changed."""
    moved = abs(facts["free"] - (row.free or 0)) > NOTABLE * facts["total"]
    if not moved and row.problem is None and row.total == facts["total"]:
        return {}
    return {"total": facts["total"], "free": facts["free"], "problem": None}
