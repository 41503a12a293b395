"""What happens by the clock: hosts that fall silent, work whose end is unknown, sizes of domains."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from chassis import context
from contracts import errors
from services.inventory import disks, domains, hosts, leases, runs, store, store_world, tables, templates, vms
from services.inventory.scene import Scene

GONE_FOR = dt.timedelta(days=7)


def watch(scene: Scene) -> None:
    """Note hosts that fall silent, for ever. It begins after a whole grace time: while this service itself was
    away nobody's heartbeats were heard."""
    settings = scene.settings
    scene.clock.sleep(settings.heartbeat_interval * settings.heartbeat_grace)
    while True:
        _guarded(scene, "watching the hosts", lambda: scene.write(lambda session: hosts.note_silence(scene, session)))
        scene.clock.sleep(settings.heartbeat_interval)


def run(scene: Scene) -> None:
    """Settle what is overdue, for ever."""
    while True:
        scene.clock.sleep(scene.settings.tidy_interval)
        once(scene)


def once(scene: Scene) -> None:
    with context.use(context.new("inventory")):
        _guarded(scene, "settling what is open", lambda: settle(scene))
        _guarded(scene, "looking at the domains", lambda: domains.look_at_sizes(scene))


def follow(scene: Scene) -> None:
    """Ask how far copies of disks are, for ever."""
    while True:
        scene.clock.sleep(scene.settings.copy_interval)
        with context.use(context.new("inventory")):
            _guarded(scene, "following copies", lambda: follow_copies(scene))


def follow_copies(scene: Scene) -> None:
    with scene.database.read() as session:
        due = store_world.copies(session, scene.now())
    for id_ in due:
        try:
            disks.resume(scene, id_)
        except errors.Problem as problem:  # its row says what became of it
            scene.log.info(f"the copy for disk {id_}: {problem}", disk_id=id_)


def join(scene: Scene) -> None:
    """Keep the hosts in the lockspaces of their domains, for ever."""
    while True:
        scene.clock.sleep(scene.settings.heartbeat_interval)
        with context.use(context.new("inventory")):
            _guarded(scene, "joining lockspaces", lambda: leases.watch(scene))


def forget(scene: Scene) -> None:
    """Drop the memory of what was deleted long ago, once a day, for ever."""
    while True:
        before = scene.now() - GONE_FOR
        _guarded(scene, "forgetting", lambda: scene.write(lambda session: store.forget_gone(session, before)))  # noqa: B023
        scene.clock.sleep(86_400)


def settle(scene: Scene) -> None:
    with scene.database.read() as session:
        overdue = store_world.overdue(session, scene.now())
    for sort, id_, state in overdue:
        try:
            _settle_one(scene, sort, id_, state)
        except errors.Problem as problem:  # it stays open; the next round tries again
            scene.log.info(f"{sort.__tablename__} {id_} stays {state}: {problem}", id=id_)


def _settle_one(scene: Scene, sort: type[tables.Row], id_: str, state: str) -> None:
    if sort is tables.StorageDomain:
        domains.resume(scene, id_)
    elif sort is tables.Disk:
        disks.resume(scene, id_)
    elif sort is tables.Template:
        templates.resume(scene, id_)
    elif state == "starting":
        runs.look(scene, id_)
    else:
        vms.resume(scene, id_)


def _guarded(scene: Scene, what: str, do: Callable[[], object]) -> None:
    """A round that fails must not be the last one."""
    try:
        do()
    except errors.Problem as problem:
        scene.log.warning(f"{what} has to wait: {problem}")
    except Exception:
        scene.log.exception(f"{what} failed")
