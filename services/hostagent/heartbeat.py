"""What the agent tells: its heartbeat, and the news of its hypervisor process. Green side.

Heartbeats go out whether or not the hypervisor process answers: then they say that it does not.
"""

from __future__ import annotations

import collections
import datetime
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contracts import errors, hostagent
from contracts.promise import Event

BEAT_SECONDS = 3.0  # for the hypervisor process to say how its VMs are
WAITING = 1000  # news that wait for the broker; older ones are dropped: who missed them looks
TELL_SECONDS = 3.0

Tell = Callable[[Event, dict[str, Any], str, float], Any]
Ask = Callable[[str, dict[str, Any], float], Any]
EVENTS = {"vm_changed": hostagent.vm_changed, "job_changed": hostagent.job_changed}


def stamp() -> str:
    """This host's wall clock."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Heart:
    """Makes heartbeats; one object per start of the agent."""

    def __init__(self, host_id: str, ask: Ask) -> None:
        self._host_id, self._ask = host_id, ask
        self._agent_id, self._sequence = str(uuid.uuid4()), 0
        self._facts: dict[str, Any] = _plain_facts()
        self._lockspaces: list[dict[str, Any]] = []

    def beat(self) -> dict[str, Any]:
        """contracts.hostagent.Heartbeat."""
        try:
            told = self._ask("beat", {}, BEAT_SECONDS)
            self._facts, self._lockspaces = told["facts"], told["lockspaces"]
        except errors.Problem as problem:
            told = {
                "problem": f"the hypervisor process does not answer: {problem}",
                "vms": [],
                "lockspaces": self._lockspaces,
            }
        self._sequence += 1
        return {
            "host_id": self._host_id,
            "boot_id": boot_id(),
            "agent_id": self._agent_id,
            "sequence": self._sequence,
            "clock": stamp(),
            "problem": told["problem"],
            "facts": self._facts,
            "vms": told["vms"],
            "lockspaces": told["lockspaces"],
        }


class Herald:
    """News on their way to the bus, in order. `hear` never waits."""

    def __init__(self, host_id: str, tell: Tell, log: Any, signal: Any) -> None:
        self._host_id, self._tell, self._log, self._signal = host_id, tell, log, signal
        self._news: collections.deque[tuple[Event, dict[str, Any]]] = collections.deque(maxlen=WAITING)

    def hear(self, name: str, payload: dict[str, Any]) -> None:
        self._news.append((EVENTS[name], {**payload, "host_id": self._host_id, "clock": stamp()}))
        self._signal.set()

    def run(self) -> None:
        """Until the process ends. News that the broker did not take are tried again until newer ones push them out."""
        while True:
            self._signal.wait()
            self._signal.clear()
            while self._news:
                event, payload = self._news[0]
                if not self.tell(event, payload):
                    time.sleep(1.0)
                elif self._news and self._news[0][1] is payload:
                    self._news.popleft()

    def tell(self, event: Event, payload: dict[str, Any]) -> bool:
        """Whether the broker has it."""
        try:
            self._tell(event, payload, self._host_id, TELL_SECONDS)
        except errors.BusAway as away:
            self._log.warning("news wait for the broker", event_name=event.name, reason=away.fields["reason"])
            return False
        return True


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _plain_facts() -> dict[str, Any]:
    """What is known without the hypervisor process."""
    return {
        "cpus": os.cpu_count() or 0,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "hostname": socket.gethostname(),
        "libvirt": None,
        "qemu": None,
        "kvm": False,
        "leases_fault": None,
    }
