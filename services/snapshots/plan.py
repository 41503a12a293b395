"""The plan of one merge. Pure: a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MergePlan:
    """Merge `top_id` down into `base_id`; `child_id` is the volume on top of top, None when top is active. `between`:
    the volumes between the two, the one below top first, which go in the same job.

    `pull`: the other way round. Top takes up what base and those between hold and stands on `below_id` then (None: on
    nothing), the volume that base stands on.

    `copy`: at most so many bytes are copied. `needs`: the volume that stays may grow by so much. `returns`: what comes
    back at least. `note`: why this direction, a sentence, where there was a choice.
    """

    vm_id: str
    disk_id: str
    base_id: str
    top_id: str
    child_id: str | None
    copy: int = 0
    needs: int = 0
    returns: int = 0
    between: tuple[str, ...] = ()
    pull: bool = False
    below_id: str | None = None
    note: str = ""

    @property
    def active(self) -> bool:
        """Whether QEMU leaves the volume that it writes to, by a pivot."""
        return self.child_id is None and not self.pull

    @property
    def stays(self) -> str:
        """The end that survives."""
        return self.top_id if self.pull else self.base_id

    @property
    def gone(self) -> str:
        """The end that leaves the chain; its mark is the first part of the record."""
        return self.base_id if self.pull else self.top_id

    @property
    def carrier(self) -> str | None:
        """The volume whose header the job changes, to name `ground`; None: a pivot changes none."""
        return self.top_id if self.pull else self.child_id

    @property
    def ground(self) -> str | None:
        return self.below_id if self.pull else self.base_id

    @property
    def dropped(self) -> tuple[str, ...]:
        """What is deleted at the end, in that order."""
        return (*self.between, self.base_id) if self.pull else (self.top_id, *self.between)

    @property
    def removed(self) -> tuple[str, ...]:
        """The volumes of the snapshots that go, the oldest first."""
        return (self.base_id, *reversed(self.between))

    @property
    def direction(self) -> str:
        return "pull" if self.pull else "commit"

    @property
    def kind(self) -> str:
        return "pull" if self.pull else "active" if self.active else "internal"
