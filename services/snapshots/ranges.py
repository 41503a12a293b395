"""Which volumes of a chain go down together. Pure.

Neighbouring snapshots that are removed together become one range: base is the volume of the oldest one, top the volume
above that of the newest one, and one job takes top and all between down into base. Each block is then copied once,
whichever of the layers hold it, and every layer is read once. Ranges of one chain have no volume in common (between two
lies the volume of a snapshot that stays, which is the top of the lower one), so any order of them is right.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping, Sequence

MAX_BACKING = 900  # bytes of the name that libvirt writes into a child; one over 1023 crashes QEMU


def ranges(chain: Sequence[str], removed: Collection[str], kept: Collection[str] = ()) -> list[tuple[str, ...]]:
    """The volumes of the snapshots to remove, in runs of neighbours, the oldest first.

    `kept`: volumes that no merge may touch. A snapshot whose own volume, or the one above it, is such a volume is left
    out, and so is the active volume, which is no snapshot's."""
    found: list[list[str]] = []
    before: str | None = None
    for own, above in itertools.pairwise(chain):
        if own in removed and own not in kept and above not in kept:
            if found and found[-1][-1] == before:
                found[-1].append(own)
            else:
                found.append([own])
        before = own
    return [tuple(run) for run in found]


def cut(
    chain: Sequence[str], run: Sequence[str], names: Mapping[str, str | None], limit: int = MAX_BACKING
) -> tuple[tuple[str, ...], int]:
    """As much of a run, from its oldest on, as can go in one job, and the bytes of the name that all of it would need.

    `names`: the backing file name in each volume's header. An active top has no child, so no name is written."""
    top = chain.index(run[0]) + len(run)
    if top + 1 >= len(chain):
        return tuple(run), 0
    base = chain.index(run[0])
    sizes = [written(chain, base, end, names) for end in range(base + 1, top + 1)]
    fitting = next((count for count in range(len(run), 0, -1) if sizes[count - 1] <= limit), 0)
    return tuple(run[:fitting]), sizes[-1]


def written(chain: Sequence[str], base: int, top: int, names: Mapping[str, str | None]) -> int:
    """Bytes of the name that libvirt writes into the child of top: from there down to the name of base, each name is
    put behind the folder part of what it has so far."""
    path = ""
    for at in range(top + 1, base, -1):
        name = names.get(chain[at]) or chain[at - 1]
        path = name if name.startswith("/") else path[: path.rfind("/") + 1] + name
    return len(os.fsencode(path))
