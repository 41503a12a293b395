"""The storage as the hypervisor process sees it: calls that can hang run in child processes.

One long-lived child per domain directory and lane. A child that misses its deadline is killed and abandoned (a
process on a dead NFS may not die at once) and the next request gets a new one. Lanes keep short work from
waiting for long work: the mark of a pivot must never stand behind a scan.

Thread-safe; plain threads only. Every call is idempotent, so a child that *dies* (not: hangs) is replaced and
asked once more within the same deadline. A call that runs out of time says StorageTimeout: outcome unknown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from contracts import errors
from services.hostagent import layout
from services.hostagent.storage_pipe import Child, Died, Overdue

QUICK = "quick"  # looks and marks: milliseconds
MAKE = "make"  # qemu-img create, new domains
SLOW = "slow"  # whole-domain scans and what needs one
LEASE, LEASE_SECONDS = "lease", 30.0  # what is asked of sanlock; for those who write leases, more than they may take

MAX_CHILDREN = 48  # idle ones beyond this are ended, least recently used first

Domain = dict[str, Any]  # {"id": uuid, "path": mount point}, contracts.hostagent.DomainRef


# budget: every storage call of the agent, each with its promise
class Storage:
    """All storage calls of the agent. `deadline` is the default number of seconds for one call.

    Every method raises the Problems that contracts/hostagent.py declares for it, StorageTimeout above all.
    `environment` is added to the children's.
    """

    def __init__(self, deadline: float = 20.0, environment: dict[str, str] | None = None) -> None:
        self._deadline = deadline
        self._environment = environment or {}
        self._children: dict[tuple[str, str], Child] = {}
        self._gone: list[Child] = []
        self._lock = threading.Lock()

    def create_domain(
        self, domain: Domain, name: str, data_center_id: str, io_timeout: int = 10, *, deadline: float | None = None
    ) -> dict[str, Any]:
        """DomainFacts of the domain, made now or before."""
        args = {"domain": domain, "name": name, "data_center_id": data_center_id, "io_timeout": io_timeout}
        return self._ask(MAKE, "create_domain", args, deadline)

    def look_domain(self, domain: Domain, *, deadline: float | None = None) -> dict[str, Any]:
        """DomainFacts."""
        return self._ask(QUICK, "look_domain", {"domain": domain}, deadline)

    def delete_domain(self, domain: Domain, *, deadline: float | None = None) -> None:
        """Remove an empty domain; StillInUse while it has images."""
        self._ask(MAKE, "delete_domain", {"domain": domain}, deadline)

    def scan(self, domain: Domain, *, deadline: float | None = None) -> dict[str, Any]:
        """DomainScan."""
        return self._ask(SLOW, "scan", {"domain": domain}, deadline)

    def referrers(
        self,
        domain: Domain,
        image: str,
        volumes: Sequence[str],
        but: Sequence[str] = (),
        *,
        deadline: float | None = None,
    ) -> dict[str, list[str]]:
        """Scan the whole domain once: who refers to each volume, in words (`volume <id> of disk <id>`, or a path).
        `but`: volumes of the same image that may; before a commit of top into base, base may have top alone."""
        args = {"domain": domain, "image": image, "volumes": list(volumes), "but": list(but)}
        return dict(self._ask(SLOW, "referrers", args, deadline)["by"])

    def lease(self, op: str, domain: Domain, *, deadline: float | None = None, **args: Any) -> dict[str, Any]:
        """One ask of sanlock about this domain, by its name in storage_child.py."""
        writes = op in ("ensure_lease", "drop_lease")  # in another lane: they keep nobody waiting who looks
        lane, seconds = (MAKE, LEASE_SECONDS) if writes else (LEASE, deadline)
        return self._ask(lane, op, {"domain": domain, **args}, seconds)

    # -- volumes --

    def create_volume(  # noqa: PLR0917 - a volume has as many facts as it has
        self,
        domain: Domain,
        image: str,
        volume: str,
        parent: str | None,
        capacity: int,
        format: str = "cow",
        description: str = "",
        *,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """VolumeFacts of the volume, made now or before; `capacity` in bytes."""
        wanted = {"volume": volume, "parent": parent, "capacity": capacity, "format": format}
        args = {"domain": domain, "image": image, **wanted, "description": description}
        return self._ask(MAKE, "create_volume", args, deadline)

    def create_thin(
        self,
        domain: Domain,
        image: str,
        volume: str,
        template_image: str,
        template_volume: str,
        *,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """VolumeFacts of a new disk's first volume, which stands on a template's volume."""
        args = {"domain": domain, "image": image, "volume": volume}
        args |= {"template_image": template_image, "template_volume": template_volume}
        return self._ask(MAKE, "create_thin", args, deadline)

    def copy_volume(  # noqa: PLR0917 - two disks, and what becomes of them
        self,
        domain: Domain,
        image: str,
        volume: str,
        source_domain: Domain,
        source_image: str,
        shared: bool,
        *,
        stopped: threading.Event | None = None,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """VolumeFacts of a volume that holds all of another disk. Takes as long as it takes, in a child of its own.
        Once `stopped` is set none is begun any more: StorageFailed."""
        args = {"domain": domain, "image": image, "volume": volume, "shared": shared}
        args |= {"source_domain": source_domain, "source_image": source_image}
        try:
            return self._ask(_copying(image), "copy_volume", args, deadline, stopped)
        finally:
            self._end_copy(domain, image)

    def stop_copy(self, domain: Domain, image: str, stopped: threading.Event) -> None:
        """End the copy into this image that was given this event, also one whose child does not exist yet."""
        stopped.set()
        self._end_copy(domain, image)

    def _end_copy(self, domain: Domain, image: str) -> None:
        path, lane = str(domain["path"]), _copying(image)
        with self._lock:
            child = self._children.get((path, lane))
        if child is not None:
            self._drop(path, lane, child)

    def look_copy(self, domain: Domain, image: str, volume: str, *, deadline: float | None = None) -> dict[str, Any]:
        """{"done": whether the volume exists, "copied": bytes}."""
        return self._ask(QUICK, "look_copy", {"domain": domain, "image": image, "volume": volume}, deadline)

    def volumes(self, domain: Domain, image: str, *, deadline: float | None = None) -> dict[str, Any]:
        """StorageView, and two keys beyond it: `trouble` (the Problem on the wire why there is no leaf, or null)
        and in each volume `backing` (the backing file string in its header, or null). NotFound: no such image."""
        return self._ask(QUICK, "volumes", {"domain": domain, "image": image}, deadline)

    def check_variables(self, domain: Domain, image: str, *, deadline: float | None = None) -> None:
        """Raises StorageFailed when the image's UEFI variables are no file of its own."""
        self._ask(QUICK, "check_variables", {"domain": domain, "image": image}, deadline)

    def prepare_mark(
        self,
        domain: Domain,
        image: str,
        volume: str,
        legality: str,
        heir: str | None = None,
        *,
        deadline: float | None = None,
    ) -> None:
        """Write and sync the `.meta.new` of a later `mark`, before the guest is paused: the mark is then a rename
        that needs no space."""
        args = {"domain": domain, "image": image, "volume": volume, "legality": legality, "heir": heir}
        self._ask(QUICK, "prepare_mark", args, deadline)

    def mark(
        self,
        domain: Domain,
        image: str,
        volume: str,
        legality: str,
        heir: str | None = None,
        *,
        deadline: float | None = None,
    ) -> None:
        """Set LEGALITY ("legal", "illegal", "fake") durably; it is on the storage when this returns. `heir`: the base
        that a range went into of which this is the top."""
        args = {"domain": domain, "image": image, "volume": volume, "legality": legality, "heir": heir}
        self._ask(QUICK, "mark", args, deadline)

    def record_merge(
        self,
        domain: Domain,
        image: str,
        base: str,
        top: str,
        child: str | None,
        *,
        between: Sequence[str] = (),
        concluded: bool = False,
        deadline: float | None = None,
    ) -> None:
        """After top, with the volumes between, went down into base: these illegal, child's parent := base, sizes and
        types as they are now. ChainDiffers unless the child's header resolves to base (child None: unless base is the
        leaf). `concluded`: a living QEMU says so too; else JobFailed for an internal merge, unless it was begun."""
        ends = {"base": base, "top": top, "child": child, "between": list(between), "concluded": concluded}
        self._ask(MAKE, "record_merge", {"domain": domain, "image": image, **ends}, deadline)

    def record_pull(
        self,
        domain: Domain,
        image: str,
        base: str,
        top: str,
        ground: str | None,
        *,
        between: Sequence[str] = (),
        concluded: bool = False,
        deadline: float | None = None,
    ) -> None:
        """After base, with the volumes between, went up into top: these illegal, top's parent := ground. ChainDiffers
        unless top's header resolves to ground. `concluded`: a living QEMU says so too, and its tables are proved to
        hold all; else JobFailed, unless it was begun."""
        ends = {"base": base, "top": top, "ground": ground, "between": list(between), "concluded": concluded}
        self._ask(MAKE, "record_pull", {"domain": domain, "image": image, **ends}, deadline)

    def put_back(self, domain: Domain, image: str, *, deadline: float | None = None) -> dict[str, str]:
        """Headers that a merge changed and nobody recorded name their old top again: {volume: top}. There is hardly
        ever one, so a look comes first: a start does not wait for what others make."""
        args = {"domain": domain, "image": image}
        if not self._ask(QUICK, "unrecorded", args, deadline)["found"]:
            return {}
        return dict(self._ask(MAKE, "put_back", args, deadline)["back"])

    def make_bare(self, domain: Domain, image: str, *, deadline: float | None = None) -> dict[str, Any]:
        """Backing file names are made bare: {"bare": [volumes], "kept": {volume: why its name stays}}. A look first."""
        args = {"domain": domain, "image": image}
        if not self._ask(QUICK, "look_grown", args, deadline)["found"]:
            return {"bare": [], "kept": {}}
        return dict(self._ask(MAKE, "make_bare", args, deadline))

    def wait_idle(self, domain: Domain, image: str, *, deadline: float | None = None) -> None:
        """Until no writer works in this image; StorageTimeout when one goes on."""
        self._ask(MAKE, "wait_idle", {"domain": domain, "image": image}, deadline)

    def record_chain(
        self,
        domain: Domain,
        image: str,
        chain: list[str],
        unused: list[str],
        live: bool,
        *,
        deadline: float | None = None,
    ) -> None:
        """Make the records follow the headers along `chain` (leaf first) and mark the `unused` volumes illegal."""
        args = {"domain": domain, "image": image, "ids": chain, "unused": unused, "live": live}
        self._ask(MAKE, "record_chain", args, deadline)

    def resize(self, domain: Domain, image: str, volume: str, capacity: int, *, deadline: float | None = None) -> None:
        """Record a new capacity in bytes (CAP of the `.meta`); the file itself is QEMU's to grow."""
        args = {"domain": domain, "image": image, "volume": volume, "capacity": capacity}
        self._ask(QUICK, "resize", args, deadline)

    def discard(
        self,
        domain: Domain,
        image: str,
        volume: str,
        below: Sequence[str] = (),
        *,
        stands_on: str | None = None,
        deadline: float | None = None,
    ) -> None:
        """Delete a volume that is marked illegal and that nothing on the domain refers to, nor any QEMU opens, and
        after it those `below` in this order, which only the ones before them may refer to. `stands_on`: what a living
        QEMU writes to; then also an empty leaf on top of it, to which none ever switched."""
        volumes = {"volume": volume, "below": list(below), "stands_on": stands_on}
        self._ask(SLOW, "discard", {"domain": domain, "image": image, **volumes}, deadline)

    def delete_image(self, domain: Domain, image: str, *, deadline: float | None = None) -> None:
        """Delete a disk with all its volumes, if nothing outside refers to them and no QEMU has them open."""
        self._ask(SLOW, "delete_image", {"domain": domain, "image": image}, deadline)

    # -- pure --

    @staticmethod
    def path(domain: Domain, image: str, volume: str) -> str:
        """Where the volume's file is; no I/O."""
        return layout.volume_path(domain["path"], domain["id"], image, volume)

    @staticmethod
    def leaf_of(view: dict[str, Any]) -> str:
        """The leaf of a `volumes` answer; raises its trouble if it has none."""
        if view["leaf"] is None:
            raise errors.from_wire(view["trouble"])
        return str(view["leaf"])

    # -- children --

    def close(self) -> None:
        """End every child; a call that is under way fails."""
        with self._lock:
            children = [*self._children.values(), *self._gone]
            self._children.clear()
            self._gone.clear()
        for child in children:
            child.end()

    def _ask(
        self,
        lane: str,
        op: str,
        args: dict[str, Any],
        deadline: float | None,
        stopped: threading.Event | None = None,
    ) -> dict[str, Any]:
        seconds = self._deadline if deadline is None else deadline
        limit = time.monotonic() + seconds
        path = str(args["domain"]["path"])
        for last in (False, True):
            child = self._child(path, lane, stopped)
            if child is None:
                raise errors.StorageFailed(action=op, path=path, reason="it was stopped")
            try:
                return child.ask(op, args, limit)
            except Died as died:
                self._drop(path, lane, child)
                if last:
                    raise errors.StorageFailed(action=op, path=path, reason=f"its process died ({died})") from None
            except Overdue as overdue:
                if overdue.hung:
                    self._drop(path, lane, child)
                raise errors.StorageTimeout(path=path, seconds=seconds) from None
        raise AssertionError("not reached")

    def _child(self, path: str, lane: str, stopped: threading.Event | None = None) -> Child | None:
        """The lane's child, made if need be; None once it was stopped. Who stops sets the event before he takes the
        lock: either he finds the child, or it is not made."""
        with self._lock:
            if stopped is not None and stopped.is_set():
                return None
            child = self._children.pop((path, lane), None)
            if child is None:
                self._trim()
                child = Child(self._environment)
            self._children[(path, lane)] = child  # now the most recently used
            return child

    def _trim(self) -> None:
        """End idle children beyond the limit; look after abandoned ones. Under the lock."""
        self._gone = [child for child in self._gone if not child.reaped()]
        for key, child in list(self._children.items()):
            if len(self._children) < MAX_CHILDREN:
                return
            if child.idle():
                del self._children[key]
                child.end()
                self._gone.append(child)

    def _drop(self, path: str, lane: str, child: Child) -> None:
        child.kill()
        with self._lock:
            if self._children.get((path, lane)) is child:
                del self._children[(path, lane)]
            if not child.reaped():
                self._gone.append(child)


def _copying(image: str) -> str:
    """The lane of a copy into this image: nothing waits for it."""
    return f"copy {image}"
