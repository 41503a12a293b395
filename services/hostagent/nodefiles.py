"""Which file is behind which of QEMU's block nodes, asked for without hurting QEMU.

A block stream (a pull) puts a filter over the volume, and takes it out at its end while the job still holds it, for
moments, or until it is dismissed where it failed. A `query-named-block-nodes` that is at work then meets a filter over
nothing, and QEMU 7.2 ends by a segmentation fault (docs/adr/0023). So it is asked only while no stream is there, or
while all are paused. What it told is good for as long as this QEMU lives, since libvirt numbers its nodes and takes no
number twice: in looks meanwhile the files are those.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Question = tuple[str, dict[str, Any] | None]  # a command and its arguments
Ask = Callable[[Sequence[Question]], Awaitable[list[Any]]]
Files = dict[str, str]  # by node name

TRIES = 100
AGAIN = 0.02  # seconds between two looks whether a stream has paused

_NAMED: Question = ("query-named-block-nodes", {"flat": True})
_JOBS: Question = ("query-jobs", None)


class Unknown(Exception):
    """The files cannot be asked for now."""


class NodeFiles:
    """Within the monitors' loop. `refused`: what an ask raises when QEMU answers with an error."""

    def __init__(self, refused: type[Exception]) -> None:
        self._refused = refused
        self._known: dict[str, Files] = {}
        self._kept: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {}

    async def now(self, vm_id: str, ask: Ask, graph: Any) -> Files:
        """Of all nodes of this graph. Raises Unknown."""
        async with self._turns.setdefault(vm_id, asyncio.Lock()):
            streams = _streams((await ask([_JOBS]))[0])
            if not streams and vm_id not in self._kept:
                return await self._learn(vm_id, ask)
            if self._has(vm_id, graph):
                return self._known[vm_id]
            if not streams:
                raise Unknown("a pull is just being begun")
            return await self._learn_paused(vm_id, ask)

    async def known(self, vm_id: str, ask: Ask, graph: Any) -> Files:
        """The same, and nothing is asked where all of them are known."""
        return self._known[vm_id] if self._has(vm_id, graph) else await self.now(vm_id, ask, graph)

    async def keep(self, vm_id: str) -> None:
        """Until `release` nothing is asked for: a stream is about to begin, and may end at once."""
        async with self._turns.setdefault(vm_id, asyncio.Lock()):
            self._kept.add(vm_id)

    def release(self, vm_id: str) -> None:
        self._kept.discard(vm_id)

    def forget(self, vm_id: str) -> None:
        """Its QEMU may be another one from now on."""
        self._known.pop(vm_id, None)

    def _has(self, vm_id: str, graph: Any) -> bool:
        wanted = {node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
        known = self._known.get(vm_id)
        return known is not None and all(name in known or name.startswith("#block") for name in wanted)

    async def _learn(self, vm_id: str, ask: Ask) -> Files:
        (named,) = await ask([_NAMED])
        self._known[vm_id] = {node["node-name"]: node["file"] for node in named}
        return self._known[vm_id]

    async def _learn_paused(self, vm_id: str, ask: Ask) -> Files:
        """A paused stream does not end. (One that a death left paused is found so, and goes on as well.)"""
        try:
            for _ in range(TRIES):
                streams = _streams((await ask([_JOBS]))[0])
                if all(job["status"] == "paused" for job in streams):
                    return await self._learn(vm_id, ask)
                await self._each(ask, "job-pause", [job for job in streams if job["status"] == "running"])
                await asyncio.sleep(AGAIN)
            raise Unknown("a pull does not pause")
        finally:
            await self._each(ask, "job-resume", _streams((await ask([_JOBS]))[0]))

    async def _each(self, ask: Ask, command: str, jobs: Sequence[Any]) -> None:
        for job in jobs:
            with contextlib.suppress(self._refused):  # it has ended, or is asked for already
                await ask([(command, {"id": job["id"]})])


def _streams(jobs: Any) -> list[Any]:
    """A concluded one too: where it failed or was cancelled it holds its filter until libvirt dismisses it."""
    return [job for job in jobs if job["type"] == "stream" and job["status"] != "null"]
