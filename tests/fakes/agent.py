"""A host agent for tests of other services: contract-checked, on the real bus, with its host in memory.

    agent = FakeAgent(bus, host_id)                       # tests.fakes.bus.Bus
    other = FakeAgent(bus, host2, storage=agent.world.storage)      # a second host on the same storage
    with agent: ...                                       # or agent.start(); agent.stop()

    agent.world.vms[vm_id].state = "paused"; agent.tell_vm(vm_id)   # something happens there
    agent.world.job_rate = 0                              # jobs stand still
    agent.fail("start_vm", errors.HypervisorRefused(...)) # the next ask of this promise is refused
    agent.lose("create_volume")                           # ... is carried out, but its answer is lost
    agent.ignore("create_volume")                         # ... is neither carried out nor answered
    agent.silent = True                                   # no heartbeats
    agent.problem = "libvirt is away"; agent.clock_off = 5.0
    agent.asked("start_vm")                               # the requests that came in

Heartbeats leave every `interval` seconds, with the time at which they are sent; ticks of the world (jobs copy, guests
shut down) every `tick` seconds.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from chassis import bus_wire as wire
from chassis import clock
from contracts import errors, hostagent
from contracts.promise import Rpc
from tests.fakes import bus as places
from tests.fakes.agent_storage import Storage
from tests.fakes.agent_world import World

PROMISES: dict[str, Rpc] = {promise.wire: promise for promise in vars(hostagent).values() if isinstance(promise, Rpc)}
FACTS = {
    "cpus": 8,
    "memory": 32 * 2**30,
    "hostname": "fake",
    "libvirt": "9.0.0",
    "qemu": "7.2.0",
    "kvm": True,
    "leases_fault": None,
}


class FakeAgent:
    """One host on the bus. Everything may be changed while it runs; take `world.storage.lock` for compound changes."""

    def __init__(
        self,
        bus: places.Bus,
        host_id: str,
        storage: Storage | None = None,
        *,
        interval: float = 0.5,
        tick: float = 0.1,
    ) -> None:
        self.bus, self.host_id = bus, host_id
        self.world = World(host_id, storage)
        self.interval, self._tick = interval, tick
        self.boot_id = str(uuid.uuid4())
        self.agent_id = str(uuid.uuid4())
        self.sequence = 0
        self.silent = False
        self.problem: str | None = None
        self.clock_off = 0.0
        self.facts = dict(FACTS)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._fates: dict[str, list[tuple[str, errors.Problem | None]]] = {}
        self._threads: list[Any] = []
        self._voice = bus.voice()
        self._stopping = threading.Event()

    def __enter__(self) -> FakeAgent:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Answer, beat and tick; a new run of the agent each time (VMs live on)."""
        self.agent_id, self.sequence = str(uuid.uuid4()), 0
        self._stopping.clear()
        listener = places._Thread(self.bus.uri, self._declare, self._handle)
        loops = [threading.Thread(target=self._loop, args=pair, daemon=True) for pair in self._beats()]
        for loop in loops:
            loop.start()
        self._threads = [listener, *loops]

    def stop(self) -> None:
        """The agent's process ends; its VMs go on."""
        self._stopping.set()
        for thread in self._threads:
            thread.stop() if isinstance(thread, places._Thread) else thread.join(60)
        self._threads = []
        self._voice.close()

    def _beats(self) -> list[tuple[Callable[[], None], float]]:
        return [(self._beat_unless_silent, self.interval), (self._pass_time, self._tick)]

    def _loop(self, do: Callable[[], None], seconds: float) -> None:
        while True:
            try:
                do()
            except places.FAULTS:  # the broker is away; a test may have killed it
                time.sleep(places.QUIET)
            if self._stopping.wait(seconds):
                return

    def _beat_unless_silent(self) -> None:
        if not self.silent:
            self.beat()

    def _pass_time(self) -> None:
        with self.world.storage.lock:
            self.world.tick()
        self._tell_news()

    # -- news ---------------------------------------------------------------------------------------------

    def now(self) -> str:
        """This host's clock."""
        return clock.iso(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.clock_off))

    def heartbeat(self, **other: Any) -> dict[str, Any]:
        """The next heartbeat, unsent; `other` replaces fields."""
        self.sequence += 1
        with self.world.storage.lock:
            vms = [vm.facts() for vm in self.world.vms.values()]
            lockspaces = list(self.world.lockspaces.values())
        own = {"host_id": self.host_id, "boot_id": self.boot_id, "agent_id": self.agent_id, "sequence": self.sequence}
        return {
            **own,
            "clock": self.now(),
            "problem": self.problem,
            "facts": self.facts,
            "vms": vms,
            "lockspaces": lockspaces,
            **other,
        }

    def beat(self, **other: Any) -> None:
        self._voice.tell(hostagent.heartbeat, lambda: self.heartbeat(**other), key=self.host_id)

    def tell_vm(self, vm_id: str, **other: Any) -> None:
        """The news that a VM changed, as it is in the world now."""
        news = {"reason": "", "pid": None, "paused_by": "none", **self.world.look_vm({"vm_id": vm_id})}
        news = {**news, "host_id": self.host_id}
        self._voice.tell(hostagent.vm_changed, lambda: {**news, "clock": self.now(), **other}, key=self.host_id)

    def _tell_news(self) -> None:
        with self.world.storage.lock:
            news, self.world.news = self.world.news, []
        for what, vm_id, *rest in news:
            if what == "vm":
                self.tell_vm(vm_id)
            else:
                self._tell_job(vm_id, *rest)

    def _tell_job(self, vm_id: str, disk_id: str, status: str, cur: int, end: int) -> None:
        moved = {"status": status, "cur": cur, "end": end, "rate": int(self.world.job_rate / self._tick)}
        news = {"host_id": self.host_id, "vm_id": vm_id, "disk_id": disk_id, **moved}
        self._voice.tell(hostagent.job_changed, lambda: {**news, "clock": self.now()}, key=self.host_id)

    # -- requests -----------------------------------------------------------------------------------------

    def asked(self, method: str) -> list[dict[str, Any]]:
        """The requests for one promise, oldest first."""
        return [request for name, request in list(self.requests) if name == method]

    def fail(self, method: str, problem: errors.Problem, times: int = 1) -> None:
        """Refuse the next asks of this promise; nothing is done."""
        self._fates.setdefault(method, []).extend([("fail", problem)] * times)

    def lose(self, method: str, times: int = 1) -> None:
        """Carry out the next asks of this promise without answering."""
        self._fates.setdefault(method, []).extend([("lose", None)] * times)

    def ignore(self, method: str, times: int = 1) -> None:
        """Neither carry out nor answer the next asks of this promise."""
        self._fates.setdefault(method, []).extend([("ignore", None)] * times)

    def _declare(self, channel: Any) -> str:
        """The queue of a real agent: it outlives this process for a while, so that asks wait in it."""
        target = wire.address(hostagent.OWNER, self.host_id)
        queue = wire.rpc_queue(target)
        channel.exchange_declare(wire.RPC_EXCHANGE, "topic", durable=True, auto_delete=False)
        arguments = {"x-expires": wire.RPC_QUEUE_EXPIRES_MS}
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
        channel.queue_bind(queue, wire.RPC_EXCHANGE, f"{target}.*")
        return queue

    def _handle(self, message: Any) -> None:
        threading.Thread(target=self._answer, args=(message,), daemon=True).start()

    def _answer(self, message: Any) -> None:
        promise = PROMISES[message.delivery_info["routing_key"].rsplit(".", 1)[-1]]
        fates = self._fates.get(promise.method)
        fate, problem = fates.pop(0) if fates else ("", None)
        if fate == "ignore":
            body = json.loads(message.body)["args"][0]
            self.requests.append((promise.method, body))
        elif fate == "lose":
            places._answered(promise, self._run(promise, None), [], json.loads(message.body), message.headers)
        else:
            self.bus._answer(promise, self._run(promise, problem), [], message)

    def _run(self, promise: Rpc, problem: errors.Problem | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def run(request: dict[str, Any]) -> dict[str, Any]:
            self.requests.append((promise.method, request))
            if problem is not None:
                raise problem
            with self.world.storage.lock:
                answer: dict[str, Any] = getattr(self.world, promise.method)(request)
                return answer

        return run
