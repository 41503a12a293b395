"""What a repair of one disk would change. No I/O, nothing remembered.

It goes down the order of belief and never up: the storage's marks and metadata follow what QEMU and the headers show,
the database follows the storage. A snapshot whose moment is lost is listed, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.snapshots.books import Books, Chain, told
from services.snapshots.facts import DiskFacts


@dataclass(frozen=True)
class Plan:
    """A repair. `truth`: the chain that all are to show, `template` what it stands on. On the storage: `unused`
    volumes are marked illegal, and `records` says whether metadata has to follow. In the database: `forget` rows of
    volumes that are gone, `drop` those that wait for deletion, `lost` snapshot lines by volume, `mixed` snapshots that
    can only be removed, `found` volumes that get a snapshot of their own. `adopt`, `discard`: what a person names."""

    truth: Chain
    template: Chain = ()
    unused: Chain = ()
    records: bool = False
    rows: bool = False
    forget: Chain = ()
    drop: Chain = ()
    lost: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()
    found: Chain = ()
    adopt: Chain = ()
    discard: Chain = ()
    changes: tuple[str, ...] = ()

    @property
    def storage(self) -> bool:
        """Whether the host has to write anything."""
        return bool(self.unused) or self.records


def own(books: Books, facts: DiskFacts, whole: Chain) -> Chain:
    """A chain without the volumes of a template at its beginning, which are not the disk's own."""
    first = 0
    while first < len(whole) - 1 and _of_template(books, facts, whole[first]):
        first += 1
    return whole[first:]


def _of_template(books: Books, facts: DiskFacts, volume_id: str) -> bool:
    volume = facts.storage.volumes.get(volume_id)
    return volume is not None and volume.volume_type == "shared" and volume_id not in books.volumes


def plan(books: Books, facts: DiskFacts, whole: Chain, back: Mapping[str, str]) -> Plan:
    """`whole`: the chain to believe, down to its first volume. `back`: headers that are put back, as `facts` has them
    already, each with the volume that it names then."""
    storage, known, truth = facts.storage, books.chain(), own(books, facts, whole)
    legal = tuple(id_ for id_ in sorted(storage.volumes) if storage.volumes[id_].legality == "legal")
    unused = tuple(id_ for id_ in legal if id_ not in whole)
    records = any(storage.volumes[id_].parent_id != storage.volumes[id_].backing_id for id_ in whole)
    gone = [id_ for id_ in sorted(books.volumes) if id_ not in whole]
    drop = tuple(id_ for id_ in gone if id_ in storage.volumes and not books.volumes[id_].dropped)
    lost = tuple(id_ for id_ in sorted(books.holders) if id_ not in truth[:-1])
    bare = Plan(
        truth=truth,
        template=whole[: len(whole) - len(truth)],
        unused=unused,
        records=records or bool(back) or (storage.leaf != whole[-1] and not unused),
        rows=known != truth,
        forget=tuple(id_ for id_ in gone if id_ not in storage.volumes),
        drop=drop,
        lost=lost,
        mixed=tuple(id_ for id_ in truth[:-1] if _mixed(books, known, truth, id_)),
        found=tuple(id_ for id_ in truth[:-1] if books.vm_id and _unnamed(books, known, id_)),
        adopt=tuple(id_ for id_ in truth if id_ not in books.volumes),
        discard=tuple(id_ for id_ in unused if id_ not in books.volumes),
    )
    return replace(bare, changes=tuple(_changes(books, bare, back)))


def _mixed(books: Books, known: Chain, truth: Chain, volume_id: str) -> bool:
    """May something have been merged down into a snapshot's volume? So it looks when what stood on it has left the
    chain; a pull from above looks the same, and nobody can tell them apart."""
    holder = books.holders.get(volume_id)
    if holder is None or not holder.restorable or volume_id not in known[:-1]:
        return False
    return known[known.index(volume_id) + 1] not in truth


def _unnamed(books: Books, known: Chain, volume_id: str) -> bool:
    """An inner volume that came to be one without a snapshot of ours."""
    return volume_id not in books.holders and volume_id not in known[:-1]


def _changes(books: Books, plan: Plan, back: Mapping[str, str]) -> list[str]:
    truth = plan.truth
    lines = [f"Storage: the header of volume {child} names {top} again." for child, top in sorted(back.items())]
    lines += [f"Storage: volume {id_} is marked for deletion; nothing reads it." for id_ in plan.unused]
    if plan.records and not back:
        lines.append("Storage: the metadata of the chain names the parents that the headers name.")
    if plan.rows:
        lines.append(f"Database: the chain becomes {told(truth)}; it was {told(books.chain())}.")
    lines += [f"Database: volume {id_} is gone, and is forgotten." for id_ in plan.forget]
    lines += [f"Database: volume {id_} has left the chain, and waits for its deletion." for id_ in plan.drop]
    for id_ in plan.lost:
        holder = books.holders[id_]
        rest = "It held nothing else and is forgotten" if holder.disks == 1 else "It keeps its other disks"
        lines.append(f"Database: {holder.words} loses this disk: volume {id_} does not hold it any more. {rest}.")
    for id_ in plan.mixed:
        lines.append(f"Database: {books.holders[id_].words} can only be removed: {id_} may hold a later moment.")
    lines += [f"Database: a new snapshot names volume {id_}, so that it can be removed." for id_ in plan.found]
    return lines
