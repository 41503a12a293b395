"""The hypervisor process: every native call of the agent happens here, in plain threads.

Requests come from the door, each runs in a thread of its lane: looks never wait behind asks, and neither behind
storage work. A lane is bounded; what waits longer than its caller does is not begun any more.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chassis import logs
from contracts import errors
from services.hostagent import claims, ipc, pools, views
from services.hostagent.census import Census
from services.hostagent.commit import Commit
from services.hostagent.copies import Copies
from services.hostagent.jobs import Jobs
from services.hostagent.journal import Journal
from services.hostagent.leasing import Leasing
from services.hostagent.locks import Named, Still
from services.hostagent.look import Eyes
from services.hostagent.mender import Mender
from services.hostagent.monitor import Monitors
from services.hostagent.offline import Offline
from services.hostagent.opening import Opening
from services.hostagent.pivot import Pivot
from services.hostagent.place import Place
from services.hostagent.quiesce import Quiesce
from services.hostagent.record import Record
from services.hostagent.repair import Repair
from services.hostagent.storage import Storage
from services.hostagent.storing import Storing
from services.hostagent.switch import Switch
from services.hostagent.virt import Virt
from services.hostagent.vms import Vms
from services.hostagent.work import Parts

Request = dict[str, Any]
Call = Callable[[Request], dict[str, Any]]
_log = logs.get("hypervisor")

LANES = {"beat": 2, "look": 8, "ask": 8, "start": 4, "store": 8, "watch": 2}  # threads; starts wait for lockspaces


class Hypervisor:
    def __init__(self, place: Place) -> None:
        self.server = ipc.Server(place.socket, self._take)
        journal, monitors = Journal(place.journal), Monitors(place.monitors)
        self._storage = Storage(place.storage_seconds)
        self._virt = Virt(place, self._on_event, self._on_connect)
        self._journal = journal
        self._eyes = Eyes(place, monitors, self._virt, self._storage, journal)
        self._repair = repair = Repair(place, self._virt, monitors, journal)
        self._still = still = Still()
        self._leasing = leasing = Leasing(place, self._storage, journal, self._virt, monitors)
        locks = (Named(), Named(), still)
        parts = Parts(place, self._eyes, self._virt, monitors, self._storage, journal, repair, leasing, *locks)
        self._jobs = Jobs(journal, self._eyes, self.server.tell, still)
        self._opening = Opening(parts)
        self._vms = Vms(parts, self._opening)
        self._pivot, self._quiesce = Pivot(parts), Quiesce(parts)
        self._switch = Switch(parts, self._quiesce)
        self._census = Census(place, self._virt, self._vms, leasing)
        self._mender = Mender(parts, self._vms)
        self._lanes = {name: ThreadPoolExecutor(size, thread_name_prefix=name) for name, size in LANES.items()}
        record, self._copies = Record(parts), Copies(parts)
        self._offline = Offline(parts, self.server.tell)
        commit = Commit(parts, self._jobs, record, self._offline)
        self._calls = self._table(commit, Storing(parts, record, self._copies))

    def run(self) -> None:
        """Serve until the process ends."""
        listening = self.server.listen()
        try:
            self._repair.finish()
        except OSError as fault:
            _log.warning("libvirtd could not be started", reason=str(fault))
        self._virt.start()
        self._leasing.spaces.start()
        self._jobs.start()
        self._pivot.start()
        self._mender.start()
        _log.info("the hypervisor process is ready")
        self.server.run(listening)

    def _table(self, commit: Commit, storing: Storing) -> dict[str, tuple[str, Call]]:
        """Every promise that this process keeps: its lane and its function."""
        storage, vms = self._storage, self._vms
        return {
            "beat": ("beat", lambda _: self._beat()),
            "look_vm": ("look", lambda r: vms.look(r["vm_id"])),
            "look_disk": ("look", self._look_disk),
            "look_domain": ("look", lambda r: storage.look_domain(r["domain"], deadline=8.0)),
            "create_domain": (
                "store",
                lambda r: storage.create_domain(
                    r["domain"], r["name"], r["data_center_id"], r["io_timeout"], deadline=25.0
                ),
            ),
            "join_domain": ("store", self._leasing.spaces.join),
            "leave_domain": ("store", lambda r: self._leasing.spaces.leave(r["domain"])),
            "drop_lease": ("store", self._leasing.drop),
            "delete_domain": ("store", storing.delete_domain),
            "scan_domain": ("store", lambda r: storage.scan(r["domain"], deadline=110.0)),
            "create_volume": ("store", storing.create_volume),
            "create_thin_disk": ("store", storing.create_thin_disk),
            "copy_disk": ("store", self._copies.ask),
            "delete_disk": ("store", storing.delete_disk),
            "record_merge": ("store", storing.record_merge),
            "record_pull": ("store", lambda r: storing.record_merge(views.pull(r))),
            "record_chain": ("store", storing.record_chain),
            "discard_volume": ("store", storing.discard),
            "start_vm": ("start", vms.start),
            "shut_down_vm": ("ask", lambda r: vms.shut_down(r["vm_id"])),
            "power_off_vm": ("ask", lambda r: vms.power_off(r["vm_id"])),
            "switch_leaves": ("ask", self._switch.ask),
            "start_commit": ("ask", commit.start),
            "merge_offline": ("ask", self._offline.ask),
            "start_pull": ("ask", lambda r: commit.start(views.pull(r))),
            "set_bandwidth": ("ask", commit.set_bandwidth),
            "cancel_job": ("ask", commit.cancel),
            "pivot": ("ask", self._pivot.ask),
        }

    # -- requests --

    def _take(self, message: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        lane = self._calls[message["method"]][0] if message["method"] in self._calls else "look"
        self._lanes[lane].submit(self._serve, message, answer)

    def _serve(self, message: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        method = message["method"]
        self._still.give_way()
        waited = time.monotonic() - message["arrived"]
        if waited >= message["seconds"]:
            return  # nobody waits for it any more: nothing stale is run
        try:
            pools.hang_for_test(method)
            answer({"id": message["id"], "ok": self._calls[method][1](message["request"])})
        except errors.Problem as problem:
            _log.info("refused", method=method, code=problem.code, reason=str(problem), **message["context"])
            answer({"id": message["id"], "error": problem.to_wire()})
        except Exception:
            correlation_id = str(uuid.uuid4())
            _log.exception("a request failed", method=method, correlation_id=correlation_id, **message["context"])
            answer({"id": message["id"], "error": errors.InternalError(correlation_id=correlation_id).to_wire()})

    def _look_disk(self, request: Request) -> dict[str, Any]:
        if request["claim"]:
            claims.raise_to(self._journal, request["disk"]["disk_id"], request["claim"])
        return self._eyes.disk(request["vm_id"], request["disk"])

    def _beat(self) -> dict[str, Any]:
        if self._journal.all("freezes"):
            self._lanes["look"].submit(self._quiesce.thaw_left_over)
        if self._journal.all("openings"):
            self._lanes["watch"].submit(self._opening.finish)
        return self._census.take()

    # -- events of libvirt (in its event thread: short, and no calls back into libvirt) --

    def _on_event(self, vm_id: str, what: str, detail: tuple[str, str]) -> None:
        if what == "job":
            self._jobs.wake()
        else:
            self._lanes["beat"].submit(self._vm_news, vm_id)

    def _on_connect(self) -> None:
        _log.info("connected to libvirt")
        self._mender.wake()
        self._lanes["beat"].submit(self._quiesce.thaw_left_over)
        self._lanes["watch"].submit(self._opening.finish)

    def _vm_news(self, vm_id: str) -> None:
        self._still.give_way()  # a pause of ours is no news: once it is over the VM is as it was
        try:
            facts = self._vms.settled_look(vm_id)
            reason = self._leasing.why_ended(vm_id) if facts["state"] == "down" else ""
            self.server.tell("vm_changed", {**facts, "reason": facts["reason"] or reason})
            if self._journal.get("pauses", vm_id):
                self._pivot.wake()
            self._jobs.wake()
        except Exception:
            _log.exception("news of a VM failed", vm_id=vm_id)
        self._lanes["watch"].submit(self._verify, vm_id)

    def _verify(self, vm_id: str) -> None:
        """In a lane of its own: sanlock may be slow, heartbeats must not be."""
        self._still.give_way()
        try:
            self._leasing.verify(vm_id)
        except Exception:
            _log.exception("whether a VM holds its lease could not be looked up", vm_id=vm_id)
