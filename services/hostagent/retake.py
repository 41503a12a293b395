"""Whether a guest that is paused now can be resumed: libvirt gives its lease up at suspend and takes it again at
resume; where sanlock or the lockspace is gone by then, the guest stands still.
"""

from __future__ import annotations

import time

from contracts import errors
from services.hostagent import process
from services.hostagent.journal import Journal
from services.hostagent.lockspaces import Lockspaces

WAIT_SECONDS = 8.0  # that a pause is put off; well below the deadline of who asks for a pivot
LOOK_SECONDS = 5.0  # of one look
AGAIN = 0.5


class Retake:
    def __init__(self, spaces: Lockspaces, journal: Journal) -> None:
        self._spaces, self._journal = spaces, journal

    def wait(self, vm_id: str) -> bool:
        """Before a pause: whether it had to be put off. Raises LeaseFailed when the lease could not be relied on in
        time; the guest runs on."""
        limit, why, waited = time.monotonic() + WAIT_SECONDS, self.why_not(vm_id), False
        while why is not None:
            if time.monotonic() > limit:
                domain_id = self._journal.get("leased", vm_id)["domain"]["id"]
                raise errors.LeaseFailed(vm_id=vm_id, domain_id=domain_id, action="relied on for a pause", reason=why)
            waited = True
            time.sleep(AGAIN)
            why = self.why_not(vm_id)
        return waited

    def why_not(self, vm_id: str) -> str | None:
        """None for a VM without a lease, and for one whose lease could be taken again."""
        lease, found = self._journal.get("leased", vm_id), process.find(vm_id)
        if lease is None or found is None:
            return None
        try:
            told = self._spaces.ask("lease_ready", lease["domain"], vm=vm_id, pid=found.pid, deadline=LOOK_SECONDS)
        except errors.Problem as problem:
            return str(problem).rstrip(".")
        return None if told["why"] is None else str(told["why"])
