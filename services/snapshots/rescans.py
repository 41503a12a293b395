"""Scans of storage domains: what only the storage knows of their disk snapshots, and what lies there and belongs to
nothing. A person may ask for one (overview.py); by themselves they come from time to time, one domain after the other.

A scan takes a while, and the world goes on meanwhile. So what is looked up is looked up before and after it, and
nothing is said of a disk that came, went or was worked on: what was known of it stays.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from chassis import context, logs
from contracts import errors, hostagent
from services.snapshots import doctor_domain, store_jobs, store_overview, store_seen, survey
from services.snapshots.desk import Desk
from services.snapshots.store_seen import Seen
from services.snapshots.survey import REMOVED, Finding

BATCH = 200  # rows in one transaction: a write lasts some tens of milliseconds and lets others in
SCAN = 100.0  # seconds for every file of a domain
MAX_KEPT = 10_000  # leftovers of one domain
LOOK = 60.0  # seconds between two looks at which domains are due
SHARE = 20  # a scan is followed by a rest of so many times as long as it took
PATIENCE = 4  # periods after which a domain is scanned even where merges are always at work
Body = dict[str, Any]
_log = logs.get("snapshots")


@dataclass(frozen=True)
class Known:
    """What the databases have of a domain: inventory's disks by id, what was seen of our volumes, disks at work."""

    disks: Mapping[str, Mapping[str, Any]]
    volumes: Mapping[str, Seen | None]
    busy: frozenset[str]


@dataclass(frozen=True)
class Scanned:
    """`leftovers`: all that is there now; `new`, `gone`: how many came and went since the scan before; `sizes`: how
    many volumes had changed."""

    leftovers: int
    new: int
    gone: int
    sizes: int
    moment: datetime.datetime


def scan(desk: Desk, domain: Mapping[str, Any]) -> Scanned:
    """Look at every file of a domain and keep what was seen. Raises what a scan raises."""
    ref = {"domain": {"id": domain["id"], "path": domain["path"]}}
    moment = desk.now()
    host_id, _ = doctor_domain.first_look(desk, domain, ref)
    before = _known(desk, domain["id"])
    told = desk.peers.ask(host_id, hostagent.scan_domain, ref, SCAN)
    after = _known(desk, domain["id"])
    known = settled(before, after)
    changed = _keep_seen(desk, told, after, known)
    found = odd(told, known, {*before.volumes, *after.volumes})
    with desk.db.write() as session:
        had = store_overview.leftovers_on(session, domain["id"])
        kept = [one for one in had if _moves(one, known)]
        lines = [*found, *kept][:MAX_KEPT]
        old, new = ({_name(one) for one in rows} for rows in (had, lines))
        store_overview.keep_leftovers(session, domain["id"], lines, moment)
        store_overview.refresh(session, {disk_id for _, disk_id, *_ in old ^ new if disk_id})  # they show damage
    return Scanned(len(lines), len(new - old), len(old - new), changed, moment)


def _known(desk: Desk, domain_id: str) -> Known:
    disks = {disk["id"]: disk for disk in doctor_domain.all_disks(desk, domain_id)}
    with desk.db.read() as session:
        return Known(disks, store_seen.on_domain(session, domain_id), frozenset(store_seen.busy_on(session)))


def settled(before: Known, after: Known) -> list[Body]:
    """Inventory's disks, those that came, went, or were worked on meanwhile as `changing`: nothing is said of them."""
    lasting = (before.disks.keys() & after.disks.keys()) - before.busy - after.busy
    rows = [dict(disk) for disk in {**before.disks, **after.disks}.values()]
    still = {"ok", "failed"}
    return [
        row
        if row["id"] in lasting and {known.disks[row["id"]]["state"] for known in (before, after)} <= still
        else {**row, "state": "changing"}
        for row in rows
    ]


def odd(told: Body, known: Sequence[Body], books: Iterable[str]) -> list[Body]:
    """The leftovers that a scan shows. `books`: the volumes in the database."""
    sizes = {row["volume_id"]: row["actual_size"] for row in told["volumes"]}
    found = [*survey.of_files(told, known), *survey.without_disk(told, known, set(books))]
    return [line for one in found if not _moves(line := _leftover(one, sizes), known)]


def _leftover(one: Finding, sizes: Mapping[str, int]) -> Body:
    return {**dataclasses.asdict(one), "size": sizes.get(one.volume_id or "")}


def _moves(line: Mapping[str, Any], known: Sequence[Body]) -> bool:
    """Whether a leftover is in the folder of a disk that is changing."""
    changing = {row["id"] for row in known if row["state"] == "changing"}
    path = (line["path"] or "").split(os.sep)
    return bool(changing & {line["disk_id"], *(part.removeprefix(REMOVED) for part in path)})


def _name(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["code"], line["disk_id"], line["volume_id"], line["path"]


def _keep_seen(desk: Desk, told: Body, books: Known, known: Sequence[Body]) -> int:
    """Write down what differs, and only that: how many volumes."""
    quiet = {row["id"] for row in known if row["state"] != "changing"}
    rows = (row for row in told["volumes"] if row["disk_id"] in quiet and row["volume_id"] in books.volumes)
    seen = {row["volume_id"]: store_seen.of_scan(row) for row in rows}
    differ = [(id_, one) for id_, one in seen.items() if _differs(books.volumes[id_], one)]
    for batch in batches(differ):
        with desk.db.write() as session:
            store_seen.keep(session, dict(batch))
    return len(differ)


def _differs(had: Seen | None, seen: Seen) -> bool:
    return had is None or had.size != seen.size or seen.created_at not in (None, had.created_at)


def batches(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


# -- by themselves ----------------------------------------------------------------------------------------


def run(desk: Desk) -> None:
    """Scan every active domain again and again, for ever."""
    every = desk.settings.rescan_every
    troubles: dict[str, str] = {}
    while every:
        desk.frame.clock.sleep(min(LOOK, every / 4))
        with context.use(context.new("snapshots")):
            try:
                once(desk, troubles)
            except errors.Problem as problem:
                _log.info(f"looking for domains to scan has to wait: {problem}")
            except Exception:
                _log.exception("scanning the domains failed")


def once(desk: Desk, troubles: dict[str, str]) -> None:
    """Scan the domains that are due. `troubles`: what was told of those that could not be scanned."""
    for domain in desk.peers.active_domains():
        begun = desk.frame.clock.monotonic()
        if _is_ours(desk, domain["id"]):
            _again(desk, domain, troubles)
            desk.frame.clock.sleep(SHARE * (desk.frame.clock.monotonic() - begun))


def _is_ours(desk: Desk, domain_id: str) -> bool:
    """Whether it is due, and no other instance was faster. While merges are at work there it waits: their own scans
    stand in the same line at the agent."""
    now, every = desk.now(), datetime.timedelta(seconds=desk.settings.rescan_every)
    try:
        with desk.db.write() as session:
            at_work = domain_id in store_jobs.taken(session, "domain_id")
            return store_seen.begin_scan(session, domain_id, now, now - every * (PATIENCE if at_work else 1))
    except sa.exc.IntegrityError:  # PostgreSQL: the first scan ever, and another instance was faster by a breath
        return False


def _again(desk: Desk, domain: Mapping[str, Any], troubles: dict[str, str]) -> None:
    """One log line where something changed, and none where nothing did."""
    told = f"domain {domain['id']}:"
    try:
        found = scan(desk, domain)
    except errors.Problem as problem:
        if troubles.get(domain["id"]) != problem.code:
            _log.info(f"{told} cannot be scanned: {problem}", domain_id=domain["id"], code=problem.code)
        troubles[domain["id"]] = problem.code
        return
    if troubles.pop(domain["id"], None) is not None or found.new or found.gone:
        sentence = f"{told} scanned, {found.leftovers} leftovers, {found.new} new, {found.gone} gone"
        _log.info(sentence, domain_id=domain["id"], sizes=found.sizes)
