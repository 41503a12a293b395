"""The guest's file systems stand still around a snapshot, and never longer.

The journal knows a freeze before the guest does; whoever finds one there thaws: this ask, the next agent, or a later
heartbeat where the guest agent refused. A thaw of what is not frozen changes nothing.
"""

from __future__ import annotations

from typing import Any

from chassis import crash, logs
from contracts import errors
from services.hostagent.virt import NoDomain
from services.hostagent.work import Parts, Request

FREEZE_SECONDS = 10  # that libvirt waits for the guest agent, whatever it was asked
TRIES = 60  # thaws that the guest agent may refuse, one with each heartbeat
_log = logs.get("quiesce")


class Quiesce:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def freeze(self, request: Request, connected: bool) -> bool:
        """Whether they stand still now. Raises QuiesceFailed where that was demanded and cannot be had."""
        vm_id, wish = request["vm_id"], request["quiesce"]
        if wish == "never" or (wish == "auto" and not connected):
            return False
        if not connected:
            raise errors.QuiesceFailed(vm_id=vm_id, reason="no guest agent is connected")
        self._parts.journal.put("freezes", vm_id, {"vm_id": vm_id})
        crash.point("switch.after_freeze_journal")
        try:
            self._parts.virt.ask(vm_id, "fsFreeze", _freeze)
        except (errors.HypervisorRefused, errors.HypervisorAway, NoDomain) as fault:
            self.thaw(vm_id)
            if wish == "required":
                raise errors.QuiesceFailed(vm_id=vm_id, reason=str(fault)) from None
            return False
        crash.point("switch.after_freeze")
        return True

    def thaw(self, vm_id: str) -> None:
        """What cannot be thawed now stays in the journal."""
        try:
            self._parts.virt.ask(vm_id, "fsThaw", lambda domain: domain.fsThaw())
        except NoDomain:
            pass
        except errors.HypervisorRefused as fault:
            self._refused(vm_id, str(fault))
            return
        except errors.HypervisorAway as fault:
            _log.warning("libvirt is away: thawed at its return", vm_id=vm_id, reason=str(fault))
            return
        self._parts.journal.put("freezes", vm_id, None)

    def thaw_left_over(self) -> None:
        """Thaw guests that an agent before us froze, or that refused; one with a snapshot under way has its own."""
        for vm_id in self._parts.journal.all("freezes"):
            try:
                with self._parts.vms.hold(vm_id, "thaw", 0.0):
                    if self._parts.journal.get("freezes", vm_id):
                        self.thaw(vm_id)
            except errors.DiskBusy:
                continue

    def _refused(self, vm_id: str, reason: str) -> None:
        tries = self._parts.journal.get("freezes", vm_id).get("tries", 0) + 1
        if tries < TRIES:
            self._parts.journal.put("freezes", vm_id, {"vm_id": vm_id, "tries": tries})
            _log.warning("the guest agent did not thaw; asked again soon", vm_id=vm_id, tries=tries, reason=reason)
        else:
            self._parts.journal.put("freezes", vm_id, None)
            _log.error("the guest agent never thawed: look at this guest", vm_id=vm_id, tries=tries, reason=reason)


def _freeze(domain: Any) -> None:
    domain.agentSetResponseTimeout(FREEZE_SECONDS)
    domain.fsFreeze()
