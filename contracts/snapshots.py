"""Snapshots, volume chains, merges and removals.

Words: a volume is one file of a chain, the last one is active (the leaf). A snapshot names one volume per disk.
Removing snapshot S merges the volume above S's (top) down into S's own (base); base survives, top is deleted. Where
base holds far less than an active top it is pulled up into top instead: top survives, base is deleted.
A merge is the flow for one disk; a removal is what a user asked for. Every flow is a job with the same id.
"""

# budget: one owner, one file of promises

from __future__ import annotations

from contracts import doctor, errors, hostagent, overview
from contracts import fields as f
from contracts.inventory import ById, Page, Rows
from contracts.promise import Event, Rpc

OWNER = "snapshots"


# -- jobs -------------------------------------------------------------------------------------------------

JOB_STATES = ("running", "undoing", "done", "undone", "stuck")


class Reason(f.Fact):
    """A declared error: its code, its fields (`details`), its message and its advice in words."""

    code = f.text()
    details = f.anything()
    message = f.text()
    hint = f.text()


class Progress(f.Fact):
    """Bytes done and to do, bytes per second; `end` 0 while unknown. `behind`: the copy does not get nearer to its end,
    the guest writes at least as fast as its limit or the storage lets it copy. `offline`: the VM is down, a host
    copies, and it does not start before that has ended."""

    cur = f.size()
    end = f.size()
    rate = f.size()
    behind = f.flag(load_default=False)
    offline = f.flag(load_default=False)


class JobStep(f.Fact):
    """`state`: waiting, running, done."""

    name = f.text()
    state = f.choice("waiting", "running", "done")


class Job(f.Fact):
    """Long work. `kind`: snapshot (creating one), removal, merge. `state`: running, undoing, done, undone (it
    failed or was cancelled; nothing of it is left, `reason` says why), stuck (a person is needed: `action`).
    `parent_id`: the removal that a merge belongs to. `vm_id`, `snapshot_id`: null where there are several.
    `finished_at` null while it goes on."""

    id = f.uid()
    kind = f.choice("snapshot", "removal", "merge")
    parent_id = f.uid(allow_none=True)
    vm_id = f.uid(allow_none=True)
    snapshot_id = f.uid(allow_none=True)
    disk_id = f.uid(allow_none=True)
    user = f.text()
    description = f.text()
    state = f.choice(*JOB_STATES)
    step = f.text()
    steps = f.many(JobStep)
    progress = f.nested(Progress)
    reason = f.nested(Reason, allow_none=True)
    action = f.text(allow_none=True)
    cancellable = f.flag()
    result = f.anything(allow_none=True)
    version = f.count(1)
    created_at = f.time()
    finished_at = f.time(allow_none=True)


class Jobs(Rows):
    items = f.many(Job)


class ListJobs(Page):
    vm_id = f.uid(load_default=None, allow_none=True)
    parent_id = f.uid(load_default=None, allow_none=True)
    state = f.choice(*JOB_STATES, load_default=None, allow_none=True)


class JobBandwidth(f.Request):
    """`bandwidth` in bytes per second, 0: no limit."""

    id = f.uid()
    bandwidth = f.size()


# -- snapshots --------------------------------------------------------------------------------------------


class CreateSnapshot(f.Request):
    """`job_id` names the job, `disk_ids` null takes all plugged disks. `quiesce`: auto freezes the guest's file
    systems when its agent answers, required fails without, never does not ask."""

    id = f.uid()
    job_id = f.uid()
    vm_id = f.uid()
    description = f.text(1024, load_default="")
    disk_ids = f.uids(64, load_default=None, allow_none=True)
    quiesce = f.choice("auto", "required", "never", load_default="auto")


class SnapshotDisk(f.Fact):
    """`volume_id`: the volume that holds this disk as it was. Sizes in bytes; null where not yet known."""

    disk_id = f.uid()
    alias = f.text()
    volume_id = f.uid()
    actual_size = f.size(allow_none=True)


class Snapshot(f.Fact):
    """`state`: creating, ok, removing. `restorable` is false from the plan of a merge of it on, and for good unless
    it is certain that nothing was copied: its volumes are then mixtures of two moments. `partly_removed`: only some
    of its disks could be removed, the rest is here."""

    id = f.uid()
    vm_id = f.uid()
    description = f.text()
    state = f.choice("creating", "ok", "removing")
    restorable = f.flag()
    partly_removed = f.flag()
    quiesced = f.flag()
    live = f.flag()
    disks = f.many(SnapshotDisk)
    job_id = f.uid(allow_none=True)
    version = f.count(1)
    created_at = f.time()


class Snapshots(Rows):
    items = f.many(Snapshot)


class ListSnapshots(Page):
    vm_id = f.uid(load_default=None, allow_none=True)


class RemoveSnapshot(f.Request):
    """`job_id` names the removal. `bandwidth` in bytes per second for each disk, 0: no limit."""

    id = f.uid()
    job_id = f.uid()
    bandwidth = f.size(load_default=0)


# -- chains -----------------------------------------------------------------------------------------------


class GetChain(f.Request):
    disk_id = f.uid()


class ChainVolume(f.Fact):
    """One volume of a chain as the database has it. `snapshot_id` null for the active one."""

    volume_id = f.uid()
    parent_id = f.uid(allow_none=True)
    snapshot_id = f.uid(allow_none=True)
    description = f.text()
    active = f.flag()
    actual_size = f.size(allow_none=True)


class Chain(f.Fact):
    """The chain of a disk, first volume first, and what the host says of it (null: nobody could be asked)."""

    disk_id = f.uid()
    vm_id = f.uid(allow_none=True)
    volumes = f.many(ChainVolume)
    facts = f.nested(hostagent.DiskFacts, allow_none=True)


# -- merges -----------------------------------------------------------------------------------------------


class Merge(f.Fact):
    """One merge of a disk: it removes `snapshot_ids`, neighbours in its chain, the oldest first, by taking `layers`
    volumes, top and those below it, down into base in one job. `kind`: internal, active (with a pivot), or pull: then
    base and those above it go up into top, which stays. `stall` holds, for an active one, the milliseconds of each part
    of the guest's standstill."""

    id = f.uid()
    removal_id = f.uid()
    vm_id = f.uid()
    disk_id = f.uid()
    snapshot_ids = f.uids()
    base_id = f.uid()
    top_id = f.uid()
    layers = f.count(1)
    kind = f.choice("internal", "active", "pull")
    state = f.choice(*JOB_STATES)
    step = f.text()
    progress = f.nested(Progress)
    bytes_merged = f.size()
    bytes_returned = f.size()
    stall = f.nested(hostagent.Pivoted, allow_none=True)
    reason = f.nested(Reason, allow_none=True)
    version = f.count(1)


class Merges(Rows):
    items = f.many(Merge)


class ListMerges(Page):
    removal_id = f.uid(load_default=None, allow_none=True)
    disk_id = f.uid(load_default=None, allow_none=True)


# -- removals ---------------------------------------------------------------------------------------------


class DiskSnapshot(f.Request):
    """One disk of one snapshot."""

    snapshot_id = f.uid()
    disk_id = f.uid()


class SnapshotFilter(f.Request):
    """Snapshots for which all that is named holds, at least one thing. `text`: in the description, whatever its case;
    `domain_id`: only their disks on this storage domain."""

    vm_id = f.uid(load_default=None, allow_none=True)
    domain_id = f.uid(load_default=None, allow_none=True)
    taken_before = f.time(load_default=None, allow_none=True)
    text = f.text(1024, 1, load_default=None, allow_none=True)


class RemoveSnapshots(f.Request):
    """Exactly one of `snapshots`, `disk_snapshots`, `filter` and `listed`. The last two need `expected_count`, how many
    snapshots the filter should match, how many disk snapshots the list should have (its `total`), unless this is a
    `dry_run`, which begins nothing and answers with the plan. `job_id` names the removal. `bandwidth`
    in bytes per second for each disk, 0: no limit."""

    job_id = f.uid()
    snapshots = f.uids(1000, load_default=None, allow_none=True)
    disk_snapshots = f.many(DiskSnapshot, 1000, load_default=None, allow_none=True)
    filter = f.nested(SnapshotFilter, load_default=None, allow_none=True)
    listed = f.nested(overview.ListedDiskSnapshots, load_default=None, allow_none=True)
    expected_count = f.count(load_default=None, allow_none=True)
    bandwidth = f.size(load_default=0)
    dry_run = f.flag(load_default=False)


class RetryRemoval(f.Request):
    """A new removal, `job_id`, of what the removal `id` has left."""

    id = f.uid()
    job_id = f.uid()
    bandwidth = f.size(load_default=0)
    dry_run = f.flag(load_default=False)


class RemovalItem(f.Fact):
    """One disk of one snapshot. `state` is its merge's; refused: nothing was begun, `reason` says why."""

    snapshot_id = f.uid()
    disk_id = f.uid()
    vm_id = f.uid()
    description = f.text()
    merge_id = f.uid(allow_none=True)
    state = f.choice("planned", "refused", *JOB_STATES)
    reason = f.nested(Reason, allow_none=True)


class RemovalMerge(f.Fact):
    """One job of a chain, the `position`th of it. At most `bytes_to_copy` are copied, the volume that stays grows by at
    most `space_needed`, at least `space_returned` comes back. `direction` is where blocks go: commit, down into base,
    or pull, up into top. `why` says in words why it is done in this way."""

    id = f.uid()
    vm_id = f.uid()
    disk_id = f.uid()
    host_id = f.uid()
    domain_id = f.uid()
    position = f.count(1)
    snapshot_ids = f.uids()
    base_id = f.uid()
    top_id = f.uid()
    layers = f.count(1)
    kind = f.choice("internal", "active", "pull")
    direction = f.choice("commit", "pull")
    bytes_to_copy = f.size()
    space_needed = f.size()
    space_returned = f.size()
    why = f.text()
    state = f.choice("planned", *JOB_STATES)
    step = f.text()


class RemovalDomain(f.Fact):
    """Sums of one storage domain. `space_needed` is the peak while as many merges run as the limits allow."""

    domain_id = f.uid()
    merges = f.count()
    bytes_to_copy = f.size()
    space_needed = f.size()
    space_returned = f.size()


class Removal(f.Fact):
    """What a removal does or, planned, would do: `items` in the order asked for, `merges` by disk in their order."""

    id = f.uid()
    state = f.choice("planned", *JOB_STATES)
    description = f.text()
    user = f.text()
    snapshot_count = f.count()
    progress = f.nested(Progress)
    reason = f.nested(Reason, allow_none=True)
    action = f.text(allow_none=True)
    cancellable = f.flag()
    items = f.many(RemovalItem)
    merges = f.many(RemovalMerge)
    domains = f.many(RemovalDomain)
    created_at = f.time(allow_none=True)
    finished_at = f.time(allow_none=True)


class SnapshotGone(f.Fact):
    id = f.uid()
    vm_id = f.uid()


_START = (
    errors.NotFound,
    errors.IdempotencyConflict,
    errors.AlreadyExists,
    errors.DiskBusy,
    errors.VmWrongState,
    errors.VmUnsure,
    errors.HostNotUp,
    errors.NoHost,
    errors.ClockOff,
    errors.DomainNotActive,
    errors.ChainDiffers,
    errors.ChainBroken,
    errors.NoSpace,
    errors.StillInUse,
    errors.VolumeInUse,
    errors.TemplateVolume,
    errors.DiskWrongState,
    errors.BackingOutside,
    errors.BackingTooLong,
    errors.ForeignJob,
    errors.SnapshotNotRestorable,
    errors.HypervisorAway,
    errors.HypervisorRefused,
    errors.DomainUnusable,
    errors.StorageTimeout,
    errors.StorageFailed,
    errors.LimitExceeded,
    errors.NoLease,
)

create_snapshot = Rpc(OWNER, "create_snapshot", CreateSnapshot, Job, _START, deadline=30)
get_snapshot = Rpc(OWNER, "get_snapshot", ById, Snapshot, (errors.NotFound,))
list_snapshots = Rpc(OWNER, "list_snapshots", ListSnapshots, Snapshots)
remove_snapshot = Rpc(OWNER, "remove_snapshot", RemoveSnapshot, Job, (*_START, errors.NothingToRemove), deadline=30)
remove_snapshots = Rpc(
    OWNER,
    "remove_snapshots",
    RemoveSnapshots,
    Removal,
    (*_START, errors.CountDiffers, errors.NothingToRemove),
    deadline=60,
)
retry_removal = Rpc(
    OWNER,
    "retry_removal",
    RetryRemoval,
    Removal,
    (*_START, errors.NothingToRemove, errors.FlowWrongState),
    deadline=60,
)
get_removal = Rpc(OWNER, "get_removal", ById, Removal, (errors.NotFound,))
cancel_removal = Rpc(OWNER, "cancel_removal", ById, Removal, (errors.NotFound, errors.TooLate))
get_chain = Rpc(OWNER, "get_chain", GetChain, Chain, (errors.NotFound, errors.ChainDiffers), deadline=20)

get_job = Rpc(OWNER, "get_job", ById, Job, (errors.NotFound,))
list_jobs = Rpc(OWNER, "list_jobs", ListJobs, Jobs)
cancel_job = Rpc(OWNER, "cancel_job", ById, Job, (errors.NotFound, errors.TooLate))
resume_job = Rpc(OWNER, "resume_job", ById, Job, (errors.NotFound, errors.FlowWrongState))
limit_job = Rpc(
    OWNER, "limit_job", JobBandwidth, Job, (errors.NotFound, errors.TooLate, *hostagent.set_bandwidth.errors)
)

get_merge = Rpc(OWNER, "get_merge", ById, Merge, (errors.NotFound,))
list_merges = Rpc(OWNER, "list_merges", ListMerges, Merges)

diagnose_disk = Rpc(OWNER, "diagnose_disk", doctor.DiagnoseDisk, doctor.Diagnosis, (errors.NotFound,), deadline=40)
repair_disk = Rpc(
    OWNER,
    "repair_disk",
    doctor.RepairDisk,
    doctor.Repaired,
    (
        *(errors.NotFound, errors.NotRepairable, errors.DiagnosisChanged, errors.DiskBusy, errors.VmUnsure),
        *(errors.HostNotUp, errors.ClockOff, errors.DomainNotActive),
        *hostagent.record_chain.errors,
    ),
    deadline=150,
)
diagnose_domain = Rpc(
    OWNER, "diagnose_domain", doctor.DiagnoseDomain, doctor.DomainDiagnosis, (errors.NotFound,), deadline=150
)

check_idle = Rpc(OWNER, "check_idle", ById, f.Nothing, (errors.StillInUse, errors.DiskBusy))

list_disk_snapshots = Rpc(
    OWNER, "list_disk_snapshots", overview.ListDiskSnapshots, overview.DiskSnapshotRows, (errors.NotFound,)
)
list_leftovers = Rpc(OWNER, "list_leftovers", overview.ListLeftovers, overview.Leftovers, (errors.NotFound,))
rebuild_overview = Rpc(
    OWNER,
    "rebuild_overview",
    ById,
    overview.RebuiltOverview,
    (errors.NotFound, errors.NoHost, errors.StorageTimeout, errors.StorageFailed, errors.DomainUnusable),
    deadline=120,
)

snapshot_changed = Event(OWNER, "snapshot_changed", Snapshot)
snapshot_deleted = Event(OWNER, "snapshot_deleted", SnapshotGone)
merge_changed = Event(OWNER, "merge_changed", Merge)
merge_behind = Event(OWNER, "merge_behind", Merge)
merge_finished = Event(OWNER, "merge_finished", Merge)
job_changed = Event(OWNER, "job_changed", Job)
disk_repaired = Event(OWNER, "disk_repaired", doctor.DiskRepaired)
