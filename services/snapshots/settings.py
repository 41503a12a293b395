"""What an administrator may set for this service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chassis.settings import FrameSettings, between, setting
from services.snapshots.direction import Policy


@dataclass(frozen=True)
class SnapshotsSettings(FrameSettings):
    section: ClassVar[str] = "snapshots"

    merges_per_host: int = setting(
        2, "merges that run at the same time on one host: each takes its disk's bandwidth", check=between(1, 1000)
    )
    merges_per_domain: int = setting(
        4, "merges that run at the same time on one storage domain", check=between(1, 1000)
    )
    reserve_bytes: int = setting(
        2**30, "bytes of a domain that a merge leaves free for guests that write", check=between(0, 2**62)
    )
    reserve_percent: float = setting(
        1.0, "the same as a part of the domain's size; the smaller of the two counts", check=between(0, 50)
    )
    behind_seconds: float = setting(
        60.0,
        "a copy that has not come nearer to its end for so long is said to be behind what its guest writes",
        check=between(1, 86400),
    )
    pulls: bool = setting(
        False,
        "pull layers up where that copies far less than a commit. QEMU 7.2 can end by itself where somebody asks "
        "libvirt for block statistics at the moment at which a pull ends: for hosts on which nothing does",
    )
    pull_ratio: float = setting(
        4.0,
        "layers are pulled up into the active one where committing would copy so many times as much: with less between "
        "the two, what is saved is small beside a commit's rule that names in headers never grow",
        check=between(1, 1e9),
    )
    pull_saves: int = setting(
        256 * 2**20,
        "and at least so many bytes more: less is copied within a second or two either way",
        check=between(0, 2**62),
    )
    disks_per_removal: int = setting(
        1000, "disks of snapshots in one removal: all of them are looked at before it begins", check=between(1, 100_000)
    )
    snapshots_per_vm: int = setting(128, "longest chain: QEMU opens every file of it", check=between(1, 1000))

    deep_chain: int = setting(
        32,
        "a chain with more volumes is listed as too deep: every read may have to look into each",
        check=between(1, 1000),
    )

    rescan_every: float = setting(
        900.0,
        "seconds after which an active storage domain is scanned again, for sizes and leftovers; 0 = only when asked",
        check=between(0, 604_800),
    )

    def policy(self) -> Policy:
        """When to pull instead of committing."""
        return Policy(self.pull_ratio, self.pull_saves, self.pulls)

    def reserve(self, total: int | None) -> int:
        """Bytes to leave free on a domain of this size (None: size unknown)."""
        if total is None:
            return self.reserve_bytes
        return min(self.reserve_bytes, int(total * self.reserve_percent / 100))
