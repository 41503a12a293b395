# budget: one visible tree
"""The whole tree of errors that may cross the bus or the HTTP API.

Every error is a noun with fields. It knows its stable `code`, the HTTP `status` it becomes, a `message` and a
`hint` (what to do), both templates over the fields.

    Problem
    ├── always allowed, on any promise:
    │   InternalError  NoAnswer  ServiceAway  Late  BadRequest  DatabaseAway
    └── declared promise by promise (`errors=(...)`): everything else below
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class Problem(Exception):
    """One declared error. Fields are keyword arguments and must be JSON values."""

    code: ClassVar[str] = "problem"
    status: ClassVar[int] = 500
    message: ClassVar[str] = "Something went wrong."
    hint: ClassVar[str] = ""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self._fill(self.message))

    def _fill(self, template: str) -> str:
        return template.format_map(_Fields(self.fields))

    @property
    def advice(self) -> str:
        """What the person should do, with the fields filled in; empty where there is nothing to do."""
        return self._fill(self.hint)

    def to_wire(self) -> dict[str, Any]:
        return {"code": self.code, "fields": self.fields}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and self.to_wire() == other.to_wire()

    def __hash__(self) -> int:
        return hash((self.code, str(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_wire, (self.to_wire(),))


class _Fields(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


# -- always allowed ---------------------------------------------------------------------------------------


class InternalError(Problem):
    code = "internal_error"
    status = 500
    message = "An unexpected error happened; the log has it under correlation id {correlation_id}."
    hint = "Look for the correlation id in the log of the service that is named in it."


class NoAnswer(Problem):
    code = "no_answer"
    status = 503
    message = "{service} did not answer {method} within {seconds} s. Whether it was done is unknown."
    hint = "Look at the object again before you repeat the request; repeating it with the same id is safe."


class ServiceAway(Problem):
    code = "service_away"
    status = 503
    message = "{service} is not connected to the bus."
    hint = "Start it, or wait until it is back: drystone health."


class BusAway(Problem):
    code = "bus_away"
    status = 503
    message = "RabbitMQ does not answer: {reason}."
    hint = "Check that the broker runs and that user and password are right."


class Late(Problem):
    code = "late"
    status = 503
    message = "{service} refused {method}: its deadline passed {seconds} s ago. Nothing was done."
    hint = "Send the request again."


class BadRequest(Problem):
    code = "bad_request"
    status = 422
    message = "The request is not valid: {errors}."
    hint = "Correct the named fields."


class DatabaseAway(Problem):
    code = "database_away"
    status = 503
    message = "The database of {service} does not answer: {reason}."
    hint = "Check that it runs; the request can be repeated."


# -- identity, idempotency, versions ----------------------------------------------------------------------


class NotFound(Problem):
    code = "not_found"
    status = 404
    message = "There is no {kind} with id or name {id}."
    hint = "List what exists: drystone {kind} list."


class AlreadyExists(Problem):
    code = "already_exists"
    status = 409
    message = "A {kind} with {field} {value} exists already."
    hint = "Choose another {field}."


class IdempotencyConflict(Problem):
    code = "idempotency_conflict"
    status = 422
    message = "The id or Idempotency-Key {id} was used before for another request."
    hint = "Use a new key for a new request; repeat the same body to ask for the same work."


class VersionMismatch(Problem):
    code = "version_mismatch"
    status = 412
    message = "The {kind} {id} was changed meanwhile: it has version {has}, you named {named}."
    hint = "Read it again and repeat the change with its new version (If-Match)."


class StillInUse(Problem):
    code = "still_in_use"
    status = 409
    message = "The {kind} {id} is still used by {by}."
    hint = "Remove or move those first."


class LimitExceeded(Problem):
    code = "limit_exceeded"
    status = 409
    message = "{what} would be {value}; the limit is {limit}."
    hint = "Stay within the limit."


class Unauthorized(Problem):
    code = "unauthorized"
    status = 401
    message = "A valid token is needed."
    hint = "Send it as 'Authorization: Bearer TOKEN' or set DRYSTONE_TOKEN."


class PreconditionRequired(Problem):
    code = "precondition_required"
    status = 428
    message = "A change of {kind} needs the version you read."
    hint = "Send the ETag that you read as If-Match."


# -- hosts and VMs ----------------------------------------------------------------------------------------


class HostNotUp(Problem):
    code = "host_not_up"
    status = 409
    message = "The host {host_id} is {state}, not up."
    hint = "Start its agent, or choose another host: drystone host list."


class NoHost(Problem):
    code = "no_host"
    status = 409
    message = "No host of {kind} {id} can take it: {reason}."
    hint = "Bring a host up: drystone host list."


class ClockOff(Problem):
    code = "clock_off"
    status = 409
    message = "The clock of host {host_id} is {seconds} s off; it takes no dangerous request."
    hint = "Set its clock (NTP) and wait for its next heartbeat."


class VmWrongState(Problem):
    code = "vm_wrong_state"
    status = 409
    message = "The VM {vm_id} is {state}; {action} needs it {needs}."
    hint = "Wait for it or bring it there first: drystone vm show {vm_id}."


class VmUnsure(Problem):
    code = "vm_unsure"
    status = 409
    message = "QEMU and libvirt differ about VM {vm_id}: {reason}. Nothing is changed until they agree."
    hint = "The agent repairs libvirt by itself; if this stays, run drystone doctor disk on its disks."


class HypervisorAway(Problem):
    code = "hypervisor_away"
    status = 503
    message = "libvirt on host {host_id} does not answer: {reason}."
    hint = "Start libvirtd on that host; running VMs are not touched by that."


class HypervisorRefused(Problem):
    code = "hypervisor_refused"
    status = 409
    message = "libvirt on host {host_id} refused {action}: {reason}."
    hint = "The reason is libvirt's own; mend what it names and try again."


class TemplateWrongState(Problem):
    code = "template_wrong_state"
    status = 409
    message = "The template {template_id} is {state}; {action} needs it {needs}."
    hint = "Wait until its disks are copied, or delete it if it failed: drystone template show {template_id}."


class LeasesUnfit(Problem):
    code = "leases_unfit"
    status = 409
    message = "The host {host_id} cannot take leases of VMs: {reason}."
    hint = "{advice}"


class LockspaceNotJoined(Problem):
    code = "lockspace_not_joined"
    status = 503
    message = "The host {host_id} has not joined the lockspace of storage domain {domain_id}: {reason}."
    hint = "It keeps trying; repeat the request later. drystone host show {host_id} says how far it is."


class LeaseHeld(Problem):
    code = "lease_held"
    status = 409
    message = "The lease of VM {vm_id} is held by {holder}: it runs there, or its disks are being written there."
    hint = "Wait until that has ended, or stop it there; nothing was started."


class LeaseNotTaken(Problem):
    code = "lease_not_taken"
    status = 409
    message = "VM {vm_id} was ended on host {host_id}: its QEMU ran without the VM's lease."
    hint = 'Restart libvirtd there, so that it reads lock_manager = "sanlock" in qemu.conf, and start the VM again.'


class LeaseFailed(Problem):
    code = "lease_failed"
    status = 409
    message = "The lease of VM {vm_id} on storage domain {domain_id} could not be {action}: {reason}."
    hint = "Mend what is named and repeat the request."


class NoLease(Problem):
    code = "no_lease"
    status = 409
    message = "VM {vm_id} is down and has no lease, so nothing would keep it from being started while {action}."
    hint = "Start it and repeat the request, or turn leases on: drystone data-center change NAME --leases."


class MacTaken(Problem):
    code = "mac_taken"
    status = 409
    message = "The MAC address {mac} is used already."
    hint = "Leave it out to get one from the pool."


class MacPoolEmpty(Problem):
    code = "mac_pool_empty"
    status = 409
    message = "The MAC pool {first} to {last} has no free address."
    hint = "Enlarge the pool of the data center."


# -- storage ----------------------------------------------------------------------------------------------


class DomainUnusable(Problem):
    code = "domain_unusable"
    status = 409
    message = "{path} is not a usable storage domain: {reason}."
    hint = "{advice}"


class DomainNotActive(Problem):
    code = "domain_not_active"
    status = 409
    message = "The storage domain {domain_id} is {state}, not active."
    hint = "Activate it first: drystone domain show {domain_id}."


class StorageTimeout(Problem):
    code = "storage_timeout"
    status = 503
    message = "The storage under {path} did not answer within {seconds} s."
    hint = "Check the mount on that host; the request can be repeated."


class StorageFailed(Problem):
    code = "storage_failed"
    status = 409
    message = "The storage refused {action} on {path}: {reason}."
    hint = "Mend what is named and repeat the request."


class NoSpace(Problem):
    code = "no_space"
    status = 409
    message = "{action} needs {needs} bytes on storage domain {domain_id}; {has} are free above the reserve."
    hint = "Free space or enlarge the storage, then repeat the request."
    below_hint = (
        "The file system shows enough: a quota, or the disk below it, is full. Mend that, then repeat the request."
    )

    @property
    def advice(self) -> str:
        has, needs = self.fields.get("has", 0), self.fields.get("needs", 1)
        return self._fill(self.below_hint if has >= needs else self.hint)


class VolumeInUse(Problem):
    code = "volume_in_use"
    status = 409
    message = "The volume {volume_id} is used by {by}."
    hint = "It is kept. What uses it must go or be moved first."

    branch_hint = (
        "It stands on it too, as a branch. If it is needed, make a whole copy of it first (qemu-img convert). Then "
        "remove it (drystone doctor disk {branch_of} shows it) and repeat the request."
    )

    @property
    def advice(self) -> str:
        return self._fill(self.branch_hint if "branch_of" in self.fields else self.hint)


class ChainBroken(Problem):
    code = "chain_broken"
    status = 409
    message = "The chain of disk {disk_id} is broken: {reason}."
    hint = "Nothing was changed. drystone doctor disk {disk_id} shows every view of it."


class ChainDiffers(Problem):
    code = "chain_differs"
    status = 409
    message = "The chain of disk {disk_id} on the storage differs from the database: {reason}."
    hint = "drystone doctor disk {disk_id} shows every view of it; with --repair the database follows the storage."


class DiagnosisChanged(Problem):
    code = "diagnosis_changed"
    status = 409
    message = "The disk {disk_id} is not any more as the diagnosis {expect} shows it. Nothing was changed."
    hint = "Look at it again, and repair what you see then: drystone doctor disk {disk_id}."


class NotRepairable(Problem):
    code = "not_repairable"
    status = 409
    message = "The disk {disk_id} cannot be repaired now: {reason} Nothing was changed."
    hint = "{advice}"


class DiskWrongState(Problem):
    code = "disk_wrong_state"
    status = 409
    message = "The disk {disk_id} is {state}; {action} needs it {needs}."
    hint = "Wait until its work is done, or delete it if it failed: drystone disk show {disk_id}."


class TemplateVolume(Problem):
    code = "template_volume"
    status = 409
    message = (
        "{action} would change the volume {volume_id} of the template disk {template_disk_id}, "
        "on which other disks stand. Nothing was touched."
    )
    hint = "Snapshots above it merge as always. For a VM that is free of the template: drystone vm create --clone full."


class BackingOutside(Problem):
    code = "backing_outside"
    status = 409
    message = "The volume {volume_id} has the backing file {backing}, which is outside its storage domain."
    hint = "Move that file into the domain or take this disk out; Drystone does not follow foreign files."


class BackingTooLong(Problem):
    code = "backing_too_long"
    status = 409
    message = "The backing file name that libvirt would write has {bytes} bytes; QEMU crashes over 1023."
    hint = "Its volumes name their backing files by grown paths. A start makes them short: power the VM off, start it."


# -- snapshots and merges ---------------------------------------------------------------------------------


class DiskBusy(Problem):
    code = "disk_busy"
    status = 409
    message = "The disk {disk_id} is busy with {flow_id}."
    hint = "Wait for it or cancel it: drystone job cancel {flow_id}."


class ForeignJob(Problem):
    code = "foreign_job"
    status = 409
    message = "A block job that Drystone did not start runs on disk {disk_id}: {job}."
    hint = "End it, or let it end, then repeat the request."


class CountDiffers(Problem):
    code = "count_differs"
    status = 409
    message = "The filter matches {found} snapshots; {expected} were expected."
    hint = "Look at what it matches now (dry_run, or drystone snapshot remove --dry-run), then name that count."


class NothingToRemove(Problem):
    code = "nothing_to_remove"
    status = 409
    message = "There is nothing to remove: {reason}."
    hint = "List what there is: drystone snapshot list."


class SnapshotNotRestorable(Problem):
    code = "snapshot_not_restorable"
    status = 409
    message = "The snapshot {snapshot_id} is being merged: it can only be removed."
    hint = "Remove it: drystone snapshot delete {snapshot_id}."


class QuiesceFailed(Problem):
    code = "quiesce_failed"
    status = 409
    message = "The guest agent of VM {vm_id} did not freeze the file systems: {reason}."
    hint = "Ask for the snapshot without quiesce, or start the guest agent."


class StaleClaim(Problem):
    code = "stale_claim"
    status = 409
    message = "An ask under claim {claim} came after claim {highest} for disk {disk_id}; it was refused."
    hint = "Nothing to do: a newer owner goes on with the work."


class JobFailed(Problem):
    code = "job_failed"
    status = 409
    message = "QEMU ended the block job on disk {disk_id} before it was done: {reason}."
    hint = "The chain is intact. Look for a full disk or an I/O error on the storage, then repeat."


class VmStopped(Problem):
    code = "vm_stopped"
    status = 409
    message = "The VM {vm_id} stopped while {action}."
    hint = "The chain is intact. Start the VM and repeat the request."


class Cancelled(Problem):
    code = "cancelled"
    status = 409
    message = "Cancelled by {user}."
    hint = "The chain is intact; the snapshot can be removed again at any time."


class TooLate(Problem):
    code = "too_late"
    status = 409
    message = "{flow_id} is past its point of no return and goes on to its end."
    hint = "Wait for it: drystone job wait {flow_id}."


class NotSettled(Problem):
    code = "not_settled"
    status = 409
    message = "{flow_id}: the step {step} was asked for {tries} times and did not happen."
    hint = "Look at the log of the host agent for the reason, then repeat the request."


class FlowWrongState(Problem):
    code = "flow_wrong_state"
    status = 409
    message = "{flow_id} is {state}; {action} needs it {needs}."
    hint = "Look at it: drystone job show {flow_id}."


class PivotFailed(Problem):
    code = "pivot_failed"
    status = 409
    message = "The pivot of disk {disk_id} was given up after {tries} refusals: {reason}."
    hint = "The merge was cancelled and the chain is intact; repeat the request."


# -- at the HTTP door -------------------------------------------------------------------------------------


class BadBody(Problem):
    code = "bad_body"
    status = 400
    message = "The body is not a JSON object: {reason}."
    hint = "Send one JSON object in UTF-8."


class UnsupportedMedia(Problem):
    code = "unsupported_media"
    status = 415
    message = "Bodies must be application/json, not {type}."
    hint = "Send Content-Type: application/json."


class BodyTooLarge(Problem):
    code = "body_too_large"
    status = 413
    message = "The body has more than {limit} bytes."
    hint = "Nothing that Drystone takes is that large."


class BadHttp(Problem):
    code = "bad_http"
    status = 400
    message = "The HTTP request cannot be understood: {reason}."
    hint = "The description of all requests is at /api/v1/openapi.json."


class NoSuchAddress(Problem):
    code = "no_such_address"
    status = 404
    message = "There is nothing at {path}."
    hint = "All addresses are listed at /api/v1/openapi.json."


class MethodNotAllowed(Problem):
    code = "method_not_allowed"
    status = 405
    message = "{method} is not possible at {path}; possible: {allowed}."
    hint = "All addresses are listed at /api/v1/openapi.json."


class TooManyStreams(Problem):
    code = "too_many_streams"
    status = 429
    message = "{limit} event streams are open already."
    hint = "Close one, or raise DRYSTONE_STREAM_LIMIT of the gateway."


def _walk(kind: type[Problem]) -> Iterator[type[Problem]]:
    for child in kind.__subclasses__():
        yield child
        yield from _walk(child)


def all_problems() -> dict[str, type[Problem]]:
    """Every declared error by code."""
    return {kind.code: kind for kind in _walk(Problem)}


ALWAYS: tuple[type[Problem], ...] = (
    InternalError,
    NoAnswer,
    ServiceAway,
    BusAway,
    Late,
    BadRequest,
    DatabaseAway,
)


def from_wire(wire: dict[str, Any]) -> Problem:
    """The error that `to_wire` described; a code of a newer version becomes a plain Problem with its fields."""
    kind = all_problems().get(str(wire.get("code")), Problem)
    return kind(**dict(wire.get("fields") or {}))
