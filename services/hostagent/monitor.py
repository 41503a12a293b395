"""QEMU's own word, over the second QMP socket that the agent gives every domain it starts.

One thread runs an asyncio loop with one connection per VM, made when first needed and kept (QEMU serves one client
of this socket at a time). Everything here may be called from any thread and has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import TimeoutError as Overdue
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient
from qemu.qmp.error import QMPError
from qemu.qmp.events import EventListener

from services.hostagent import blockgraph, nodefiles
from services.hostagent.nodefiles import Question

T = TypeVar("T")

_STATUS: Question = ("query-status", None)
_GRAPH: Question = ("x-debug-query-block-graph", None)
_JOBS: Sequence[Question] = [("query-block-jobs", None), ("query-jobs", None)]
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
        self._files = nodefiles.NodeFiles(Refused)
        self._loop = asyncio.new_event_loop()
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # we report a mute monitor ourselves
        threading.Thread(target=self._loop.run_forever, name="monitors", daemon=True).start()

    def path(self, vm_id: str) -> Path:
        return self._folder / vm_id

    def view(self, vm_id: str, seconds: float = 5.0) -> View:
        """Raises Mute."""
        return self._wait(self._view(vm_id), seconds)

    def glance(self, vm_id: str, seconds: float = 5.0) -> View:
        """The run state and the chains alone, without any job: for a guest that stands still. Raises Mute."""
        return self._wait(self._glance(vm_id), seconds)

    def glances(self, vm_ids: Collection[str], seconds: float) -> dict[str, View]:
        """The same of many, who are asked at once and have this time together; without those that did not answer."""
        return self._wait(self._glances(vm_ids, seconds), seconds + _GRACE)

    def status(self, vm_id: str, seconds: float = 5.0) -> str:
        """The run state alone: one question, for heartbeats. Raises Mute."""
        return str(self._wait(self._ask(vm_id, "query-status"), seconds)["status"])

    def ask(self, vm_id: str, command: str, arguments: dict[str, Any] | None = None, seconds: float = 5.0) -> Any:
        """One command. Raises Mute, Refused."""
        return self._wait(self._ask(vm_id, command, arguments), seconds)

    @contextlib.contextmanager
    def bell(self, vm_id: str, event: str, seconds: float = 5.0) -> Iterator[threading.Event]:
        """Set whenever QEMU tells this event: a reason to look, nothing more (a broken connection rings no bell).
        Raises Mute."""
        listener = _Bell(event)
        client = self._wait(self._listen(vm_id, listener), seconds)
        try:
            yield listener.rung
        finally:
            self._loop.call_soon_threadsafe(client.remove_listener, listener)

    @contextlib.contextmanager
    def before_a_pull(self, vm_id: str) -> Iterator[None]:
        """While one is asked for no look asks QEMU what a pull that ends does not bear (nodefiles.py). Raises Mute."""
        self._wait(self._files.keep(vm_id), 5.0)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._files.release, vm_id)

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
        # The graph comes first and last: an answer is only given when nothing moved between the questions.
        for _ in range(20):
            status, graph = await self._ask_all(vm_id, [_STATUS, _GRAPH])
            files = await self._files_of(vm_id, graph, self._files.now)
            block_jobs, jobs, after = await self._ask_all(vm_id, [*_JOBS, _GRAPH])
            if _names(after) == _names(graph):
                break
        return View(bool(status["running"]), status["status"], blockgraph.read(graph, files, block_jobs, jobs))

    async def _glance(self, vm_id: str) -> View:
        status, graph = await self._ask_all(vm_id, [_STATUS, _GRAPH])
        files = await self._files_of(vm_id, graph, self._files.known)
        return View(bool(status["running"]), status["status"], blockgraph.read(graph, files, (), ()))

    async def _files_of(self, vm_id: str, graph: Any, look: Callable[..., Awaitable[nodefiles.Files]]) -> Any:
        try:
            return await look(vm_id, functools.partial(self._ask_all, vm_id), graph)
        except nodefiles.Unknown as unknown:
            raise Mute(str(unknown)) from None

    async def _glances(self, vm_ids: Collection[str], seconds: float) -> dict[str, View]:
        looks = {vm_id: asyncio.ensure_future(self._glance(vm_id)) for vm_id in vm_ids}
        if looks:
            await asyncio.wait(looks.values(), timeout=seconds)
        answered = {vm_id: look for vm_id, look in looks.items() if look.done()}
        for look in looks.values():
            look.cancel()
        mute = (Mute, Refused)
        return {vm_id: look.result() for vm_id, look in answered.items() if not isinstance(look.exception(), mute)}

    async def _ask(self, vm_id: str, command: str, arguments: dict[str, Any] | None = None) -> Any:
        return (await self._ask_all(vm_id, [(command, arguments)]))[0]

    async def _ask_all(self, vm_id: str, questions: Sequence[Question]) -> list[Any]:
        """Questions that go together are written at once, and QEMU answers them in their order: between two of them
        it need not wait for us, nor a guest that stands still."""
        async with self._turns.setdefault(vm_id, asyncio.Lock()):
            try:
                client = await self._client(vm_id)
                told = await asyncio.gather(*itertools.starmap(client.execute, questions), return_exceptions=True)
                for one in told:
                    if isinstance(one, BaseException):
                        raise one
                return told
            except ExecuteError as problem:
                raise Refused(str(problem)) from None
            except (QMPError, OSError, asyncio.CancelledError, EOFError) as problem:
                # after a cancelled wait the next answer on this connection would be another question's
                await self._drop(vm_id)
                if isinstance(problem, asyncio.CancelledError):
                    raise
                raise Mute(str(problem) or type(problem).__name__) from None

    async def _listen(self, vm_id: str, listener: EventListener) -> QMPClient:
        async with self._turns.setdefault(vm_id, asyncio.Lock()):
            try:
                client = await self._client(vm_id)
            except (QMPError, OSError, EOFError) as problem:
                raise Mute(str(problem) or type(problem).__name__) from None
            client.register_listener(listener)
            return client

    async def _client(self, vm_id: str) -> QMPClient:
        client = self._clients.get(vm_id)
        if client is None:
            client = QMPClient(vm_id)
            client.events.event_filter = lambda _: False  # or it keeps every event until somebody takes it
            await client.connect(str(self.path(vm_id)))
            self._clients[vm_id] = client
        return client

    async def _drop(self, vm_id: str) -> None:
        self._files.forget(vm_id)
        client = self._clients.pop(vm_id, None)
        if client is not None:
            with contextlib.suppress(Exception):  # it is broken already; only its socket matters
                await asyncio.wait_for(client.disconnect(), 1.0)


class _Bell(EventListener):
    def __init__(self, event: str) -> None:
        super().__init__(event)
        self.rung = threading.Event()

    async def put(self, event: Any) -> None:
        if event["event"] in self.names:
            self.rung.set()


def _names(graph: Any) -> Any:
    """Edges and names of a graph, without its ids: QEMU counts nodes anew in every answer."""
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    return sorted((names[edge["parent"]], edge["name"], names[edge["child"]]) for edge in graph["edges"])
