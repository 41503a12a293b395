"""What the database has of one disk, as frozen values: the doctor's fourth view. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.snapshots import chain

Chain = tuple[str, ...]  # volume ids, first volume first


@dataclass(frozen=True)
class Line:
    """What the database has of one volume. `dropped`: merged, and to be deleted."""

    parent_id: str | None
    dropped: bool = False
    actual_size: int | None = None


@dataclass(frozen=True)
class Holder:
    """The snapshot that names a volume. `disks`: how many disks it holds."""

    snapshot_id: str
    description: str
    restorable: bool = True
    disks: int = 1

    @property
    def words(self) -> str:
        return f"snapshot {self.description!r} ({self.snapshot_id})" if self.description else self.snapshot_id


@dataclass(frozen=True)
class Books:
    """The database's view of one disk. `vm_id`: inventory's. `busy`: the job that works on it. `known`: false for a
    disk that never had a snapshot, whose chain is its first volume."""

    disk_id: str
    vm_id: str | None
    active_id: str
    volumes: Mapping[str, Line]
    holders: Mapping[str, Holder]
    busy: str | None = None
    known: bool = True

    def chain(self) -> Chain:
        """Empty where the rows form none."""
        try:
            return chain.order({id_: line.parent_id for id_, line in self.volumes.items()}, self.active_id)
        except ValueError:
            return ()


def told(ids: Chain) -> str:
    return " <- ".join(ids) or "nothing"
