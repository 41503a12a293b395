"""The bus door of one host's agent: every request goes to the hypervisor process as it is, and its answer back.

Nothing native is called here, so the hub never stands still, whatever libvirt or the storage do.
"""

from __future__ import annotations

from typing import Any, ClassVar

from chassis import bus, context
from chassis.frame import Frame
from chassis.settings import FrameSettings
from contracts import hostagent as contract
from contracts.promise import Rpc
from services.hostagent import ipc
from services.hostagent.child import Child
from services.hostagent.heartbeat import Heart, Herald
from services.hostagent.settings import HostagentSettings

MARGIN = 0.2  # seconds of the caller's deadline that the way back takes

Ask = dict[str, Any]


class Hostagent(bus.Service):
    """One line per promise."""

    name: ClassVar[str] = "hostagent"

    @classmethod
    def address(cls, settings: FrameSettings) -> str:
        return f"hostagent-{_own(settings).host_id}"

    @classmethod
    def prepare(cls, frame: Frame) -> None:
        settings = _own(frame.settings)
        herald = Herald(settings.host_id, frame.client.tell, frame.log, bus.Signal())
        child = Child(settings.place(), frame.log)
        caller = ipc.Caller(settings.place().socket, cls.address(settings), herald.hear)
        frame.own.update(caller=caller, child=child, herald=herald)
        frame.health.check("hypervisor", child.fault)
        bus.spawn(child.keep)

    @classmethod
    def started(cls, frame: Frame) -> None:
        bus.spawn(frame.own["herald"].run)
        bus.spawn(_beat, frame)

    @classmethod
    def stopping(cls, frame: Frame) -> None:
        frame.own["child"].stop()

    def _pass(self, promise: Rpc, request: Ask) -> Ask:
        """Raises what the hypervisor process raised; NoAnswer when it did not answer in time."""
        left = context.remaining()
        seconds = (promise.deadline if left is None else left) - MARGIN
        call = context.current()
        origin = {"request_id": call.request_id, "flow_id": call.flow_id}
        answer: Ask = self.frame.own["caller"].call(promise.method, request, seconds, origin)
        return answer

    @bus.serves(contract.create_domain)
    def create_domain(self, request: Ask) -> Ask:
        return self._pass(contract.create_domain, request)

    @bus.serves(contract.look_domain)
    def look_domain(self, request: Ask) -> Ask:
        return self._pass(contract.look_domain, request)

    @bus.serves(contract.delete_domain)
    def delete_domain(self, request: Ask) -> Ask:
        return self._pass(contract.delete_domain, request)

    @bus.serves(contract.scan_domain)
    def scan_domain(self, request: Ask) -> Ask:
        return self._pass(contract.scan_domain, request)

    @bus.serves(contract.join_domain)
    def join_domain(self, request: Ask) -> Ask:
        return self._pass(contract.join_domain, request)

    @bus.serves(contract.leave_domain)
    def leave_domain(self, request: Ask) -> Ask:
        return self._pass(contract.leave_domain, request)

    @bus.serves(contract.drop_lease)
    def drop_lease(self, request: Ask) -> Ask:
        return self._pass(contract.drop_lease, request)

    @bus.serves(contract.create_volume)
    def create_volume(self, request: Ask) -> Ask:
        return self._pass(contract.create_volume, request)

    @bus.serves(contract.create_thin_disk)
    def create_thin_disk(self, request: Ask) -> Ask:
        return self._pass(contract.create_thin_disk, request)

    @bus.serves(contract.copy_disk)
    def copy_disk(self, request: Ask) -> Ask:
        return self._pass(contract.copy_disk, request)

    @bus.serves(contract.delete_disk)
    def delete_disk(self, request: Ask) -> Ask:
        return self._pass(contract.delete_disk, request)

    @bus.serves(contract.start_vm)
    def start_vm(self, request: Ask) -> Ask:
        return self._pass(contract.start_vm, request)

    @bus.serves(contract.shut_down_vm)
    def shut_down_vm(self, request: Ask) -> Ask:
        return self._pass(contract.shut_down_vm, request)

    @bus.serves(contract.power_off_vm)
    def power_off_vm(self, request: Ask) -> Ask:
        return self._pass(contract.power_off_vm, request)

    @bus.serves(contract.look_vm)
    def look_vm(self, request: Ask) -> Ask:
        return self._pass(contract.look_vm, request)

    @bus.serves(contract.look_disk)
    def look_disk(self, request: Ask) -> Ask:
        return self._pass(contract.look_disk, request)

    @bus.serves(contract.switch_leaves)
    def switch_leaves(self, request: Ask) -> Ask:
        return self._pass(contract.switch_leaves, request)

    @bus.serves(contract.start_commit)
    def start_commit(self, request: Ask) -> Ask:
        return self._pass(contract.start_commit, request)

    @bus.serves(contract.merge_offline)
    def merge_offline(self, request: Ask) -> Ask:
        return self._pass(contract.merge_offline, request)

    @bus.serves(contract.start_pull)
    def start_pull(self, request: Ask) -> Ask:
        return self._pass(contract.start_pull, request)

    @bus.serves(contract.set_bandwidth)
    def set_bandwidth(self, request: Ask) -> Ask:
        return self._pass(contract.set_bandwidth, request)

    @bus.serves(contract.cancel_job)
    def cancel_job(self, request: Ask) -> Ask:
        return self._pass(contract.cancel_job, request)

    @bus.serves(contract.pivot)
    def pivot(self, request: Ask) -> Ask:
        return self._pass(contract.pivot, request)

    @bus.serves(contract.record_merge)
    def record_merge(self, request: Ask) -> Ask:
        return self._pass(contract.record_merge, request)

    @bus.serves(contract.record_pull)
    def record_pull(self, request: Ask) -> Ask:
        return self._pass(contract.record_pull, request)

    @bus.serves(contract.record_chain)
    def record_chain(self, request: Ask) -> Ask:
        return self._pass(contract.record_chain, request)

    @bus.serves(contract.discard_volume)
    def discard_volume(self, request: Ask) -> Ask:
        return self._pass(contract.discard_volume, request)


def _own(settings: FrameSettings) -> HostagentSettings:
    assert isinstance(settings, HostagentSettings)  # noqa: S101  for mypy: __main__ loads this class
    return settings


def _beat(frame: Frame) -> None:
    """A heartbeat at once, and then every few seconds."""
    settings = _own(frame.settings)
    heart = Heart(settings.host_id, frame.own["caller"].call)
    while True:
        began = frame.clock.monotonic()
        frame.own["herald"].tell(contract.heartbeat, heart.beat())
        bus.sleep(max(0.1, settings.heartbeat - (frame.clock.monotonic() - began)))
