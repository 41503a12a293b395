"""The views of one disk side by side, how they differ, and what a repair would change. No I/O, nothing remembered.

Believed is QEMU, then the storage's headers and marks, then libvirt, then our database; a repair goes down this
order and never up. It is refused while anything is under way or nobody can say what the truth is.
Chains of the database and the truth are tuples of volume ids, first volume first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from contracts import errors
from services.snapshots import repair, side_by_side
from services.snapshots.books import Books, Chain, Holder, told
from services.snapshots.facts import DiskFacts
from services.snapshots.repair import Plan

PERSON = "Nothing can be repaired from here; a person has to look at the files."


@dataclass(frozen=True)
class Difference:
    """`blocks`: nothing is repaired while this holds."""

    code: str
    message: str
    action: str
    volume_id: str | None = None
    blocks: bool = False

    def facts(self) -> dict[str, Any]:
        shown = {"code": self.code, "volume_id": self.volume_id}
        return {**shown, "message": self.message, "action": self.action}


@dataclass(frozen=True)
class Diagnosis:
    """`plan` None: nothing can be planned, `blocked` says why; an empty plan: nothing is to be repaired."""

    rows: tuple[dict[str, Any], ...]
    differences: tuple[Difference, ...]
    plan: Plan | None
    digest: str

    @property
    def blocked(self) -> Difference | None:
        return next((one for one in self.differences if one.blocks), None)


def diagnose(books: Books, facts: DiskFacts | None, unseen: errors.Problem | None = None) -> Diagnosis:
    """Hold the views against each other. `facts` None: nobody could look, for the reason `unseen`."""
    found = _under_way(books, facts, unseen)
    truth, seen, back = None, facts, dict[str, str]()
    if facts is not None and not found:
        back = {} if facts.qemu.alive else unrecorded(facts)
        seen = _put_back(facts, back)
        truth, trouble = truth_of(seen)
        found += [*trouble, *(_not_recorded(books, facts, child, top) for child, top in sorted(back.items()))]
    if seen is not None and truth is not None:
        found += _on_storage(books, seen, truth)
        found += _in_database(books, seen, repair.own(books, seen, truth))
    else:
        found += _broken_rows(books)
    blocked = any(one.blocks for one in found)
    plan = None if blocked or seen is None or truth is None else repair.plan(books, seen, truth, back)
    rows = tuple(side_by_side.rows(books, facts, truth))
    return Diagnosis(rows, tuple(found), plan, _digest(books, rows, found, plan))


def _digest(books: Books, rows: tuple[dict[str, Any], ...], found: list[Difference], plan: Plan | None) -> str:
    """Of everything but sizes, which change all the time."""
    shown = [{key: value for key, value in row.items() if key != "actual_size"} for row in rows]
    lines = {id_: [line.parent_id, line.dropped] for id_, line in books.volumes.items()}
    whole = [books.disk_id, books.vm_id, books.active_id, lines, shown, [[one.code, one.volume_id] for one in found]]
    changes = list(plan.changes) if plan else None
    return hashlib.sha256(json.dumps([whole, changes], sort_keys=True).encode()).hexdigest()


# -- what is under way, or not to be known ----------------------------------------------------------------


def _blocks(code: str, message: str, action: str, volume_id: str | None = None) -> list[Difference]:
    return [Difference(code, message, action, volume_id, blocks=True)]


def _under_way(books: Books, facts: DiskFacts | None, unseen: errors.Problem | None) -> list[Difference]:
    if books.busy is not None:
        message = f"The job {books.busy} works on this disk: what differs now may agree at its end."
        return _blocks("busy", message, f"Wait for it: drystone job wait {books.busy}")
    if facts is None:
        problem = unseen or errors.NoHost(kind="disk", id=books.disk_id, reason="none could be asked")
        return _blocks("not_seen", f"No host could look at it: {problem}", problem.advice)
    if facts.unknown:
        action = "The agent repairs libvirt by itself; look again in a minute. Do not stop the VM before they agree."
        return _blocks("unsure", f"QEMU and libvirt differ: {facts.unknown}.", action)
    job = facts.qemu.job or facts.libvirt.job
    if job is not None or facts.paused_by_pivot or facts.libvirt.mirror:
        words = job.named() if job else "a pivot that is not over yet"
        return _blocks(
            "foreign_job", f"A block job that Drystone did not start runs: {words}.", "Let it end, or end it."
        )
    return []


def unrecorded(facts: DiskFacts) -> dict[str, str]:
    """With no QEMU: volumes whose header names something further down than their metadata do, each with the volume that
    it stood on, which is still there. Such a merge may not be whole (docs/adr/0013); a start puts it back, too."""
    volumes = facts.storage.volumes
    found = {}
    for child in volumes.values():
        top, base = child.parent_id, child.backing_id
        if child.legality != "legal" or top is None or top == base or child.format != "cow":
            continue
        below = facts.storage.below(top)
        if base is not None and base not in (*below, *facts.storage.templates):
            continue
        between = below[below.index(base) + 1 :] if base in below else below
        if between and all(volumes[id_].legality == "legal" for id_ in between):
            found[child.volume_id] = top
    return found


def _put_back(facts: DiskFacts, back: Mapping[str, str]) -> DiskFacts:
    """The look as it will be once these headers name what they named before."""
    volumes = {
        id_: replace(volume, backing_id=back.get(id_, volume.backing_id))
        for id_, volume in facts.storage.volumes.items()
    }
    return replace(facts, storage=replace(facts.storage, volumes=volumes))


def _not_recorded(books: Books, facts: DiskFacts, child: str, top: str) -> Difference:
    base = facts.storage.volumes[child].backing_id or "nothing"
    message = (
        f"Volume {child} stands on {base}, its metadata on {top}: a merge that was not recorded, perhaps not whole."
    )
    action = f"It may not be whole: the next start puts it back on {top}, and so does {_repair(books)}"
    return Difference("not_recorded", message, action, child)


def truth_of(facts: DiskFacts) -> tuple[Chain | None, list[Difference]]:
    """The chain to believe, or why there is none: QEMU's where one lives, else the one that the marks name."""
    if facts.qemu.alive:
        trouble = _trouble_of_qemu(facts)
        return None if trouble else tuple(str(id_) for id_ in reversed(facts.qemu.chain)), trouble
    storage = facts.storage
    if storage.problem or storage.leaf is None:
        message = str(storage.problem or "No volume of it is the leaf.")
        outside = storage.trouble is not None and isinstance(storage.trouble, errors.BackingOutside)
        return None, _blocks("chain_broken", message, storage.trouble.advice if storage.trouble and outside else PERSON)
    return storage.chain(), []


def _trouble_of_qemu(facts: DiskFacts) -> list[Difference]:
    """Why what QEMU runs on is not what lies on the storage."""
    if not facts.qemu.chain:
        message = "The VM runs, and its QEMU does not have this disk."
        return _blocks("not_plugged", message, "Power the VM off and start it again, or unplug the disk.")
    if None in facts.qemu.chain:
        return _foreign(facts)
    seen = tuple(str(id_) for id_ in reversed(facts.qemu.chain))
    headers = facts.storage.below(seen[-1])
    if headers != seen:
        message = f"QEMU runs on {told(seen)}, the headers on the storage say {told(headers)}."
        return _blocks("header_differs", message, f"Do not stop the VM. {PERSON}")
    marked = next((id_ for id_ in seen if facts.storage.volumes[id_].legality != "legal"), None)
    if marked is not None:
        message = f"QEMU uses volume {marked}, which is marked illegal."
        return _blocks("illegal_in_use", message, f"Do not stop the VM. {PERSON}", marked)
    return []


def _foreign(facts: DiskFacts) -> list[Difference]:
    at = facts.qemu.chain.index(None)
    path = facts.qemu.paths[at] if at < len(facts.qemu.paths) else "a file elsewhere"
    if at == 0:
        message = f"QEMU writes to {path}, which is no volume of this disk: a snapshot was made behind Drystone's back."
        command = f"virsh blockcommit {facts.vm_id} {path} --active --pivot --shallow --wait"
        action = f"Do not stop the VM. Merge that file back, on its host: {command}; then look again."
    else:
        message = f"QEMU reads {path}, which is no volume of this disk."
        action = "Merge that file into the volume below it with virsh blockcommit, then look again."
    return _blocks("foreign_file_in_use", message, action)


# -- the storage beside QEMU ------------------------------------------------------------------------------


def _on_storage(books: Books, facts: DiskFacts, truth: Chain) -> list[Difference]:
    storage, found = facts.storage, []
    if storage.leaf != truth[-1]:
        named = f"volume {storage.leaf}" if storage.leaf else f"no leaf ({storage.problem})"
        message = f"QEMU writes to volume {truth[-1]}, the marks on the storage name {named}."
        action = f"Do not stop the VM: it would start from the wrong volume. {_repair(books)}"
        found.append(Difference("leaf_differs", message, action, truth[-1]))
    for parent, child in zip((None, *truth), truth, strict=False):
        volume = storage.volumes[child]
        if volume.parent_id != volume.backing_id:
            message = f"Volume {child} stands on {parent}, its metadata says {volume.parent_id}."
            found.append(Difference("record_differs", message, _repair(books), child))
    return found + [_left_over(books, facts, id_) for id_ in sorted(storage.volumes) if id_ not in truth]


def _left_over(books: Books, facts: DiskFacts, volume_id: str) -> Difference:
    """A volume of the disk that is in no chain."""
    volume = facts.storage.volumes[volume_id]
    known = "" if volume_id in books.volumes else ", the database does not know it"
    mark = "marked for deletion" if volume.legality == "illegal" else "not marked for deletion"
    message = f"Volume {volume_id} is in no chain: {volume.actual_size} bytes, {mark}{known}."
    action = f"If nothing needs it: {_repair(books, f'--discard {volume_id}')}"
    return Difference("left_over", message, action, volume_id)


def _repair(books: Books, more: str = "") -> str:
    return f"drystone doctor disk {books.disk_id} --repair {more}".strip()


# -- the database beside the truth ------------------------------------------------------------------------


def _broken_rows(books: Books) -> list[Difference]:
    if books.chain():
        return []
    message = f"The database's rows form no chain that ends at its active volume {books.active_id}."
    return [Difference("rows_broken", message, _repair(books))]


def _in_database(books: Books, facts: DiskFacts, truth: Chain) -> list[Difference]:
    """`truth`: the disk's own part of the chain."""
    known, found = books.chain(), _broken_rows(books)
    for id_ in truth:
        if id_ not in known and known:
            message = f"Volume {id_} belongs to the disk, the database does not have it in its chain."
            action = _repair(books) if id_ in books.volumes else _repair(books, f"--adopt {id_}")
            found.append(Difference("database_lacks", message, action, id_))
    for id_ in known:
        if id_ not in truth:
            there = "nothing reads it" if id_ in facts.storage.volumes else "it is gone"
            message = f"The database has volume {id_} in the chain, {there}."
            found.append(Difference("database_has_more", message, _repair(books), id_))
    for id_ in sorted(set(books.volumes) - {*known, *truth}):
        if id_ not in facts.storage.volumes:
            message = f"The database still has volume {id_}, which is gone."
            found.append(Difference("database_has_more", message, _repair(books), id_))
    if known and known[-1] != truth[-1]:
        message = f"The database has {known[-1]} as the active volume, it is {truth[-1]}."
        found.append(Difference("active_differs", message, _repair(books), truth[-1]))
    elif known and known != truth and set(known) == set(truth):
        message = f"The database has the order {told(known)}, it is {told(truth)}."
        found.append(Difference("order_differs", message, _repair(books)))
    return found + [_lost(books, id_, holder) for id_, holder in books.holders.items() if id_ not in truth[:-1]]


def _lost(books: Books, volume_id: str, holder: Holder) -> Difference:
    message = f"{upper(holder.words)} names volume {volume_id}, which does not hold its moment any more."
    return Difference("snapshot_lost", message, _repair(books), volume_id)


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]
