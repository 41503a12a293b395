"""libvirt: one connection that comes back by itself, its events, and calls with a deadline.

Threads: `events` runs libvirt's event loop, `connect` makes and remakes the connection, pools make the calls: a look
never waits behind an ask that hangs. A libvirtd that dies takes the connection with it, never a QEMU.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import libvirt

from chassis import crash
from contracts import errors
from services.hostagent import locks, pools
from services.hostagent.place import Place

T = TypeVar("T")
Beside = Callable[[Future[Any]], None]
BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
KEEPALIVE = (10, 6)  # every 10 s, six may be missed: a libvirtd that hangs frees our threads after a minute

_GONE = {
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_RPC,
}

JOB_STATUS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_COMPLETED: "completed",
    libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED: "failed",
    libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED: "cancelled",
    libvirt.VIR_DOMAIN_BLOCK_JOB_READY: "ready",
}


class NoDomain(Exception):
    """libvirt knows no such domain: that never means that it is stopped."""


class Virt:
    """`on_event(vm_id, what, detail)`: what is lifecycle, io_error or job (detail: target, status).
    `on_connect()` runs in the connecting thread after each new connection."""

    def __init__(
        self, place: Place, on_event: Callable[[str, str, tuple[str, str]], None], on_connect: Callable[[], None]
    ) -> None:
        self._place = place
        self._on_event, self._on_connect = on_event, on_connect
        self._looks = pools.Pool("virt-look", 4)
        self._asks = pools.Pool("virt-ask", 4)
        self.gate = locks.Gate()
        self._hung: dict[str, list[Future[Any]]] = {}
        self._lock = threading.Lock()
        self._lost = threading.Event()
        self._lost.set()
        self._ready = threading.Event()
        self._connection: Any = None
        self.fault = "not connected yet"

    def start(self) -> None:
        libvirt.registerErrorHandler(lambda *_: None, None)  # the default prints to stderr
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_events, name="events", daemon=True).start()
        threading.Thread(target=self._keep_connected, name="connect", daemon=True).start()

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether there is a connection within so many seconds."""
        return self._ready.wait(seconds)

    # -- calls --

    def look(self, vm_id: str, what: str, call: Callable[[Any], T], seconds: float | None = None) -> T:
        """Run `call(domain)` in the pool of looks. Raises NoDomain, HypervisorAway, HypervisorRefused."""
        limit = self._place.look_seconds if seconds is None else seconds
        return self._guard(what, lambda: self._looks.run(what, limit, self._with_domain, vm_id, call))

    def ask(
        self,
        vm_id: str,
        what: str,
        call: Callable[[Any], T],
        seconds: float | None = None,
        *,
        point: str = "",
        beside: Beside | None = None,
    ) -> T:
        """As `look`, in the pool of asks. After HypervisorAway the outcome is unknown. `point` names the crash point
        at which the ask is on its way and its answer is not there; `beside` is run from then on, in the caller's
        thread; it must raise nothing and end soon after the future is done."""
        limit = self._place.ask_seconds if seconds is None else seconds
        return self._ask(vm_id, what, limit, lambda: self._with_domain(vm_id, call), point=point, beside=beside)

    def _ask(
        self, vm_id: str, what: str, seconds: float, call: Callable[[], T], *, point: str, beside: Beside | None = None
    ) -> T:
        def run() -> T:
            with self.gate.together(seconds):
                self._refuse_beside_hung(vm_id, what)
                limit = time.monotonic() + seconds
                future = self._asks.start(what, call)
                crash.point(point)
                if beside is not None:
                    beside(future)
                try:
                    return pools.result(future, what, max(0.0, limit - time.monotonic()))
                except pools.TooSlow as slow:
                    with self._lock:
                        self._hung.setdefault(vm_id, []).append(future)
                    raise pools.TooSlow(what, seconds, slow.begun) from None

        return self._guard(what, run)

    def _refuse_beside_hung(self, vm_id: str, what: str) -> None:
        """A pivot that wakes up must never meet another job than its own: only a power-off is asked beside it."""
        if what != "destroy":
            self.refuse_hung(vm_id)

    def refuse_hung(self, vm_id: str) -> None:
        """An ask that ran out of time may still come through. Raises HypervisorAway until that has ended."""
        with self._lock:
            hung = [future for future in self._hung.pop(vm_id, []) if not future.done()]
            if hung:
                self._hung[vm_id] = hung
        if hung:
            raise self.away("an earlier call for this VM still hangs")

    def host(self, what: str, call: Callable[[Any], T], seconds: float | None = None) -> T:
        """Run `call(connection)`; for starts and lists."""
        limit = self._place.look_seconds if seconds is None else seconds
        return self._guard(what, lambda: self._looks.run(what, limit, lambda: call(self._open_one())))

    def launch(self, vm_id: str, xml: str, *, standing: bool) -> None:
        """Create a transient domain; `standing`: its guest does not run yet, and libvirt has taken no lease."""
        seconds, flags = self._place.ask_seconds, libvirt.VIR_DOMAIN_START_PAUSED if standing else 0
        self._ask(vm_id, "createXML", seconds, lambda: self._open_one().createXML(xml, flags), point="start.after_ask")

    def _with_domain(self, vm_id: str, call: Callable[[Any], T]) -> T:
        return call(self._open_one().lookupByUUIDString(vm_id))

    def _open_one(self) -> Any:
        if not self._ready.wait(1.0):
            raise self.away(self.fault)
        return self._connection

    def _guard(self, what: str, run: Callable[[], T]) -> T:
        try:
            return run()
        except (pools.TooSlow, locks.GateClosed) as slow:
            raise self.away(str(slow)) from None
        except libvirt.libvirtError as fault:
            raise self._translate(what, fault) from None

    def _translate(self, what: str, fault: libvirt.libvirtError) -> Exception:
        code, text = fault.get_error_code(), fault.get_error_message() or str(fault)
        if code == libvirt.VIR_ERR_NO_DOMAIN:
            return NoDomain(text)
        if code in _GONE or fault.get_error_domain() == libvirt.VIR_FROM_RPC or not self._alive():
            return self.away(text)
        return errors.HypervisorRefused(host_id=self._place.host_id, action=what, reason=text)

    def restarted(self) -> None:
        """libvirtd was ended on purpose: what we have is no connection any more."""
        self._closed(None, 0, None)

    def away(self, reason: str) -> errors.HypervisorAway:
        return errors.HypervisorAway(host_id=self._place.host_id, reason=reason)

    def _alive(self) -> bool:
        try:
            return self._connection is not None and self._connection.isAlive() == 1
        except libvirt.libvirtError:
            return False

    # -- the connection --

    def _keep_connected(self) -> None:
        tries = 0
        while True:
            self._lost.wait()
            try:
                self._connect()
                tries = 0
            except libvirt.libvirtError as fault:
                self.fault = fault.get_error_message() or str(fault)
                time.sleep(BACKOFF[min(tries, len(BACKOFF) - 1)])
                tries += 1

    def _connect(self) -> None:
        with contextlib.suppress(libvirt.libvirtError, AttributeError):
            self._connection.close()
        connection = libvirt.open(self._place.libvirt_uri)
        connection.setKeepAlive(*KEEPALIVE)
        self._lost.clear()
        connection.registerCloseCallback(self._closed, None)
        register = connection.domainEventRegisterAny
        register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
        register(None, libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._io_error, None)
        register(None, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, self._block_job, None)
        self._connection = connection
        self.fault = ""
        self._ready.set()
        self._on_connect()

    def _closed(self, _connection: Any, _reason: int, _opaque: Any) -> None:
        self.fault = "the connection to libvirtd was lost"
        self._ready.clear()
        self._lost.set()

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        self._on_event(domain.UUIDString(), "lifecycle", (str(event), str(detail)))

    def _io_error(
        self, _connection: Any, domain: Any, _path: str, device: str, _action: int, reason: str, _opaque: Any
    ) -> None:
        self._on_event(domain.UUIDString(), "io_error", (device, reason))

    def _block_job(self, _connection: Any, domain: Any, target: str, _kind: int, status: int, _opaque: Any) -> None:
        self._on_event(domain.UUIDString(), "job", (target, JOB_STATUS.get(status, "running")))


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
