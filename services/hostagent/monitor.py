"""QEMU's own word, over the second QMP socket that the agent gives every domain it starts.

One thread runs an asyncio loop with one connection per VM, made when first needed and kept (QEMU serves one client
of this socket at a time). Everything here may be called from any thread and has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as Overdue
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient
from qemu.qmp.error import QMPError

from services.hostagent import blockgraph

T = TypeVar("T")
_GRACE = 1.0  # seconds on top of a call's deadline in which the loop's thread must hand over the outcome


class Mute(Exception):
    """The monitor does not answer: what QEMU does is unknown."""


class Refused(Exception):
    """QEMU answered with an error."""


@dataclass(frozen=True)
class View:
    """One look. `status` is QEMU's run state word (running, paused, io-error, ...)."""

    running: bool
    status: str
    blocks: blockgraph.Blocks


class Monitors:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clients: dict[str, QMPClient] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._loop = asyncio.new_event_loop()
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # we report a mute monitor ourselves
        threading.Thread(target=self._loop.run_forever, name="monitors", daemon=True).start()

    def path(self, vm_id: str) -> Path:
        return self._folder / vm_id

    def view(self, vm_id: str, seconds: float = 5.0) -> View:
        """Raises Mute."""
        return self._wait(self._view(vm_id), seconds)

    def status(self, vm_id: str, seconds: float = 5.0) -> str:
        """The run state alone: one question, for heartbeats. Raises Mute."""
        return str(self._wait(self._ask(vm_id, "query-status"), seconds)["status"])

    def ask(self, vm_id: str, command: str, arguments: dict[str, Any] | None = None, seconds: float = 5.0) -> Any:
        """One command. Raises Mute, Refused."""
        return self._wait(self._ask(vm_id, command, arguments), seconds)

    def forget(self, vm_id: str) -> None:
        """Drop the connection of a VM that is gone."""
        asyncio.run_coroutine_threadsafe(self._drop(vm_id), self._loop)

    def _wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._loop)
        try:
            return future.result(seconds + _GRACE)
        except (Overdue, TimeoutError):
            future.cancel()
            raise Mute(f"no answer within {seconds:g} s") from None

    async def _view(self, vm_id: str) -> View:
        status = await self._ask(vm_id, "query-status")
        # The graph comes first and last: an answer is only given when nothing moved between the questions.
        for _ in range(20):
            graph = await self._ask(vm_id, "x-debug-query-block-graph")
            named = await self._ask(vm_id, "query-named-block-nodes", {"flat": True})
            block_jobs = await self._ask(vm_id, "query-block-jobs")
            jobs = await self._ask(vm_id, "query-jobs")
            if _names(await self._ask(vm_id, "x-debug-query-block-graph")) == _names(graph):
                break
        return View(bool(status["running"]), status["status"], blockgraph.read(graph, named, block_jobs, jobs))

    async def _ask(self, vm_id: str, command: str, arguments: dict[str, Any] | None = None) -> Any:
        async with self._turns.setdefault(vm_id, asyncio.Lock()):
            try:
                return await (await self._client(vm_id)).execute(command, arguments)
            except ExecuteError as problem:
                raise Refused(str(problem)) from None
            except (QMPError, OSError, asyncio.CancelledError, EOFError) as problem:
                # after a cancelled wait the next answer on this connection would be another question's
                await self._drop(vm_id)
                if isinstance(problem, asyncio.CancelledError):
                    raise
                raise Mute(str(problem) or type(problem).__name__) from None

    async def _client(self, vm_id: str) -> QMPClient:
        client = self._clients.get(vm_id)
        if client is None:
            client = QMPClient(vm_id)
            await client.connect(str(self.path(vm_id)))
            self._clients[vm_id] = client
        return client

    async def _drop(self, vm_id: str) -> None:
        client = self._clients.pop(vm_id, None)
        if client is not None:
            with contextlib.suppress(Exception):  # it is broken already; only its socket matters
                await asyncio.wait_for(client.disconnect(), 1.0)


def _names(graph: Any) -> Any:
    """Edges and names of a graph, without its ids: QEMU counts nodes anew in every answer."""
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    return sorted((names[edge["parent"]], edge["name"], names[edge["child"]]) for edge in graph["edges"])
