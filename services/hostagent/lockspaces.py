"""The lockspaces of this host's domains: joined when asked, joined again after every start, and kept joined.

Joining takes about 3 x io_timeout, and up to 200 s where the host id's last holder died; sanlock does it by itself,
here it is begun and looked at. What is wanted is journalled; sanlock's word is asked for in storage children.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from chassis import logs
from contracts import errors
from services.hostagent import lock_setup
from services.hostagent.journal import Journal
from services.hostagent.place import Place
from services.hostagent.storage import Storage

KEEP_EVERY = 1.0  # seconds between two looks at lockspaces that are not joined yet
SETTLED_EVERY = 10.0  # ... and at those that are, and at the host's set-up
TRIES = 3  # joins that may end without a reason before that counts as a failure
RETRY = 10.0  # seconds after a join that failed
JOIN_SECONDS = 25.0  # that a start waits for its lockspace
DROP_SECONDS = 10.0  # ... and who drops a lease
LEAVE_SECONDS = 10.0

Facts = dict[str, Any]  # contracts.hostagent.LockspaceFacts
Lease = dict[str, Any]  # contracts.hostagent.Lockspace
_log = logs.get("lockspaces")


class Lockspaces:
    """`each_round()` is called now and then, in the thread that keeps them."""

    def __init__(self, place: Place, storage: Storage, journal: Journal, each_round: Callable[[], None]) -> None:
        self._place, self._storage, self._journal = place, storage, journal
        self._each_round = each_round
        self._lock = threading.Lock()
        self._known: dict[str, Facts] = {}
        self._again: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._wake = threading.Event()
        self._checked = -SETTLED_EVERY
        self.fault: str | None = None

    def start(self) -> None:
        """Join again what was joined before, and keep it joined."""
        threading.Thread(target=self._keep, name="lockspaces", daemon=True).start()

    def ready(self, domain_id: str) -> bool:
        """Whether this host has joined the domain's lockspace."""
        return self._known.get(domain_id, {}).get("state") == "joined"

    def facts(self) -> list[Facts]:
        """Those that this host has joined or tries to join."""
        with self._lock:
            return [dict(facts) for _, facts in sorted(self._known.items())]

    def join(self, lease: Lease) -> Facts:
        """Have it joined; how far it was at the last look. Asked twice is asked once, and never waits: a domain that
        hangs would take a thread with each repeated ask."""
        domain_id = lease["domain"]["id"]
        with self._lock:
            known = self._known.get(domain_id)
        if self._journal.get("lockspaces", domain_id) != lease:
            self._journal.put("lockspaces", domain_id, lease)
            self._again.pop(domain_id, None)
            known = None
        self._wake.set()
        return known or self._note(lease, "joining", None)

    def leave(self, domain: dict[str, Any]) -> Facts:
        """Leave it; StillInUse while VMs here hold leases in it."""
        domain_id, limit = domain["id"], time.monotonic() + LEAVE_SECONDS
        wanted = self._journal.get("lockspaces", domain_id)
        domain = wanted["domain"] if wanted else domain
        self._journal.put("lockspaces", domain_id, None)
        with self._lock:
            self._known.pop(domain_id, None)
        try:
            while self.ask("leave_lockspace", domain)["state"] != "absent" and time.monotonic() < limit:
                time.sleep(0.1)
        except errors.StillInUse:
            self._journal.put("lockspaces", domain_id, wanted)
            raise
        return {"domain_id": domain_id, "state": "left", "problem": None}

    def leave_deleted(self, domain: dict[str, Any]) -> None:
        """Before a domain is deleted. A sanlock that does not answer keeps nobody from that."""
        if self._journal.get("lockspaces", domain["id"]):
            with contextlib.suppress(errors.LeasesUnfit, errors.StorageFailed):
                self.leave(domain)

    def wait_joined_again(self, domain: dict[str, Any]) -> None:
        """Where this host is to be in the domain's lockspace: as `wait_joined`, for a short time."""
        lease = self._journal.get("lockspaces", domain["id"])
        if lease is not None:
            self.wait_joined(lease, DROP_SECONDS)

    def wait_joined(self, lease: Lease, seconds: float = JOIN_SECONDS) -> None:
        """Join, and wait until it is. Raises LockspaceNotJoined, and what a domain that cannot be read is told with."""
        self._storage.look_domain(lease["domain"])  # one that hangs is told as that, and soon
        domain_id, limit = lease["domain"]["id"], time.monotonic() + seconds
        self.join(lease)
        facts = self._look_after(lease)
        while facts["state"] != "joined":
            if facts["state"] == "failed" or time.monotonic() > limit:
                reason = facts["problem"] or "joining is under way"
                raise errors.LockspaceNotJoined(host_id=self._place.host_id, domain_id=domain_id, reason=reason)
            time.sleep(0.2)
            facts = self._look_after(lease)

    def _keep(self) -> None:
        while True:
            self._wake.clear()
            try:
                self._round()
            except Exception:  # this thread is the only one that joins: it never ends
                _log.exception("a round of looking after lockspaces failed")
            settled = all(facts["state"] == "joined" for facts in self.facts())
            self._wake.wait(SETTLED_EVERY if settled or self.fault else KEEP_EVERY)

    def _round(self) -> None:
        if time.monotonic() - self._checked >= SETTLED_EVERY:
            fault, self._checked = lock_setup.find_fault(), time.monotonic()
            self.fault = f"{fault.reason}. {fault.advice}" if fault else None
        for lease in self._journal.all("lockspaces").values():
            self._keep_one(lease)
        self._each_round()

    def _keep_one(self, lease: Lease) -> None:
        try:
            self._look_after(lease)
        except errors.Problem as problem:
            self._note(lease, "failed", str(problem))
        except Exception:
            _log.exception("a lockspace could not be looked after", domain_id=lease["domain"]["id"])

    def _look_after(self, lease: Lease) -> Facts:
        """Look at sanlock, and join where it is not joined and another try is due."""
        domain_id = lease["domain"]["id"]
        try:
            here = self.ask("look_lockspace", lease["domain"])
            if here["state"] == "absent" and self._is_due(domain_id):
                why = self._why_absent(lease)
                self._again[domain_id] = time.monotonic() + (RETRY if why else KEEP_EVERY)
                here = self.ask("join_lockspace", lease["domain"], **_numbers(lease))
                if why and here["state"] == "joining":
                    return self._note(lease, "failed", why)
        except errors.Problem as problem:
            return self._note(lease, "failed", str(problem))
        return self._judge(lease, here)

    def _judge(self, lease: Lease, here: dict[str, Any]) -> Facts:
        before = self._known.get(lease["domain"]["id"], {})
        if here["sanlock_id"] not in (None, lease["sanlock_id"]):
            why = f"it is joined with the host id {here['sanlock_id']}, the inventory says {lease['sanlock_id']}"
            return self._note(lease, "failed", why)
        if here["state"] == "joined":
            self._tries.pop(lease["domain"]["id"], None)
            return self._note(lease, "joined", None)
        if here["state"] == "absent":
            return self._note(lease, "failed" if before.get("problem") else "joining", before.get("problem"))
        return self._note(lease, "joining", before.get("problem"))

    def _is_due(self, domain_id: str) -> bool:
        """Not one that was left while it was looked at."""
        wanted = self._journal.get("lockspaces", domain_id) is not None
        return wanted and time.monotonic() >= self._again.get(domain_id, 0.0)

    def _why_absent(self, lease: Lease) -> str | None:
        """What stands in the way of joining, as far as the storage shows it; None when nothing does yet."""
        record = self.ask("look_host_record", lease["domain"], sanlock_id=lease["sanlock_id"])
        if not record["formatted"]:
            return "its ids file is no lockspace; `sanlock direct init` formats it while no host uses it"
        tried = self._known.get(lease["domain"]["id"], {}).get("state") in ("joining", "failed")
        number, holder = lease["sanlock_id"], record["holder"]
        if tried and holder not in ("", lock_setup.own_name()):
            return f"the host id {number} belongs to another host there, whose sanlock is named {holder}"
        tries = self._tries[lease["domain"]["id"]] = self._tries.get(lease["domain"]["id"], 0) + 1
        return "sanlock did not join it; its log says why (sanlock client log_dump)" if tries > TRIES else None

    def _note(self, lease: Lease, state: str, problem: str | None) -> Facts:
        """The one place where a lockspace's state changes: kept and logged."""
        domain_id = lease["domain"]["id"]
        facts = {"domain_id": domain_id, "state": state, "problem": problem}
        with self._lock:
            before = self._known.get(domain_id)
            if before != facts and self._journal.get("lockspaces", domain_id):
                self._known[domain_id] = facts
                log = _log.warning if problem else _log.info
                log(f"a lockspace is {state}", domain_id=domain_id, sanlock_id=lease["sanlock_id"], problem=problem)
        return facts

    def ask(self, op: str, domain: dict[str, Any], **args: Any) -> dict[str, Any]:
        """Storage.lease. Raises LeasesUnfit with this host's id, and what sanlocks.py raises."""
        try:
            return self._storage.lease(op, domain, **args)
        except errors.LeasesUnfit as unfit:
            raise errors.LeasesUnfit(**{**unfit.fields, "host_id": self._place.host_id}) from None


def _numbers(lease: Lease) -> dict[str, int]:
    return {"sanlock_id": lease["sanlock_id"], "io_timeout": lease["io_timeout"]}
