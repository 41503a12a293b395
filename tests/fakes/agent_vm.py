"""A VM of the fakes and its block jobs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from tests.fakes.agent_storage import Facts

_pids = itertools.count(4000)


@dataclass
class Job:
    """A block commit. `active`: top is what QEMU writes to, so that the job ends in ready and needs a pivot.
    `between`: the layers that go down with top. `pull`: base and those between go up into top, onto `below_id`."""

    base_id: str
    top_id: str
    child_id: str | None
    end: int
    speed: int
    cur: int = 0
    between: list[str] = field(default_factory=list)
    pull: bool = False
    below_id: str | None = None

    @property
    def active(self) -> bool:
        return self.child_id is None and not self.pull

    @property
    def ready(self) -> bool:
        return self.active and self.cur >= self.end

    def has_ends(self, ask: Facts) -> bool:
        ends = (ask["base_id"], ask["top_id"], ask.get("child_id"), bool(ask.get("pull")))
        return (self.base_id, self.top_id, self.child_id, self.pull) == ends

    def facts(self) -> Facts:
        ends = {"base_id": self.base_id, "top_id": self.top_id, "child_id": self.child_id}
        shown = {"cur": self.cur, "end": self.end, "speed": self.speed}
        status = "ready" if self.ready else "running"
        return {**ends, **shown, "type": "pull" if self.pull else "commit", "status": status, "ready": self.ready}


@dataclass
class FakeVm:
    """`chains`: per disk what QEMU has open, leaf first. `mute`: its QEMU lives and tells nothing."""

    spec: Facts
    mute: bool = False
    pid: int = field(default_factory=lambda: next(_pids))
    state: str = "running"
    reason: str = ""
    paused_by: str = "none"
    chains: dict[str, list[str]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    asked_down: bool = False

    def facts(self) -> Facts:
        shown = {"vm_id": self.spec["id"], "state": self.state, "reason": self.reason}
        return {**shown, "pid": self.pid, "paused_by": self.paused_by}
