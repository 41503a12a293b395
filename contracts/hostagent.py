"""What the agent of one host promises. Every request is addressed to `hostagent-<host id>`.

All asks are idempotent: asking twice equals asking once. Asks that change a chain carry a claim (flow id and
number); the agent remembers the highest number per disk and flow and refuses lower ones (StaleClaim).
Where a request names a domain it names its directory too: the agent holds no configuration of domains.
"""

# budget: one owner, one file of promises

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, validates_schema

from contracts import errors
from contracts import fields as f
from contracts.promise import Event, Rpc

OWNER = "hostagent"


class DomainRef(f.Request):
    """A file domain: its id, and the directory (mount point) in which the folder of that id lies."""

    id = f.uid()
    path = f.path()


class DiskRef(f.Request):
    """One disk: its id is the image id on the storage."""

    disk_id = f.uid()
    domain = f.nested(DomainRef)


class Claim(f.Request):
    """Who asks: a flow and the number of its present claim."""

    flow_id = f.uid()
    number = f.count(1)


# -- domains ----------------------------------------------------------------------------------------------


class CreateDomain(f.Request):
    """`io_timeout`: seconds, sanlock's unit of patience, with which the lockspace is formatted."""

    domain = f.nested(DomainRef)
    name = f.name()
    data_center_id = f.uid()
    io_timeout = f.count(1, 60, load_default=10)


class DomainFacts(f.Fact):
    """What the storage says. `total` and `free` in bytes; `version` is the layout's (V5 = 5)."""

    id = f.uid()
    name = f.text()
    version = f.count()
    data_center_id = f.uid(allow_none=True)
    total = f.size()
    free = f.size()


class OnDomain(f.Request):
    domain = f.nested(DomainRef)


# -- lockspaces and leases --------------------------------------------------------------------------------


class Lockspace(f.Request):
    """A domain's lockspace as one host joins it. `sanlock_id`: the host's own number in it, 1 to 2000, which no
    other host of the data center has. `io_timeout` in seconds, the same on all hosts."""

    domain = f.nested(DomainRef)
    sanlock_id = f.count(1, 2000)
    io_timeout = f.count(1, 60)


class LockspaceFacts(f.Fact):
    """How far a host is with one domain's lockspace; `problem` says why it is not joined."""

    domain_id = f.uid()
    state = f.choice("joining", "joined", "failed", "left")
    problem = f.text(allow_none=True)


class VmOnDomain(f.Request):
    vm_id = f.uid()
    domain = f.nested(DomainRef)


# -- volumes ----------------------------------------------------------------------------------------------


class CreateVolume(f.Request):
    """`parent_id` null: a first volume. `capacity` in bytes; with a parent it must equal or exceed the parent's."""

    disk = f.nested(DiskRef)
    volume_id = f.uid()
    parent_id = f.uid(allow_none=True, load_default=None)
    capacity = f.size(512)
    format = f.choice("cow", "raw", load_default="cow")
    description = f.text(150, load_default="")


class VolumeFacts(f.Fact):
    """One volume as the storage has it. `parent_id` is what `.meta` says, `backing_id` what the qcow2 header's name
    `backing` resolves to (null: no backing file). Sizes in bytes; `actual_size` is what it takes on the storage.
    `template_disk_id`: of a shared volume, the disk of the template that it belongs to. `pulls`: a pull may move
    what it holds, or end in it: qcow2 of version 3, without dirty bitmaps."""

    volume_id = f.uid()
    parent_id = f.uid(allow_none=True)
    backing_id = f.uid(allow_none=True)
    backing = f.text(allow_none=True, load_default=None)
    format = f.choice("cow", "raw")
    capacity = f.size()
    actual_size = f.size()
    legality = f.choice("legal", "illegal", "fake")
    volume_type = f.choice("leaf", "internal", "shared")
    template_disk_id = f.uid(allow_none=True, load_default=None)
    pulls = f.flag(load_default=False)
    created_at = f.time(allow_none=True)


class CreateThinDisk(f.Request):
    """A disk whose first volume stands on a template's volume: hard links of that, and an empty overlay."""

    disk = f.nested(DiskRef)
    volume_id = f.uid()
    template_disk_id = f.uid()
    template_volume_id = f.uid()


class CopyDisk(f.Request):
    """Copy what `source` reads like (its whole chain) into the one volume of a new disk. No VM may write to the
    source. `shared`: the new volume is a template's."""

    source = f.nested(DiskRef)
    disk = f.nested(DiskRef)
    volume_id = f.uid()
    shared = f.flag(load_default=False)


class CopyFacts(f.Fact):
    """`state`: copying (ask again to hear how far it is) or done. Bytes; `total` is an estimate from above."""

    state = f.choice("copying", "done")
    copied = f.size()
    total = f.size()


class DeleteDisk(f.Request):
    disk = f.nested(DiskRef)


class VolumeRow(VolumeFacts):
    disk_id = f.uid()
    path = f.text()
    problem = f.text(allow_none=True)


class ForeignFile(f.Fact):
    """A file under images/ that is no volume; `backing` is the file that it refers to, if any."""

    path = f.text()
    backing = f.text(allow_none=True)


class DomainScan(f.Fact):
    """Every chain on a domain, and the files in images/ that are no volumes of ours."""

    volumes = f.many(VolumeRow)
    foreign = f.many(ForeignFile)


# -- VMs --------------------------------------------------------------------------------------------------


class VmDisk(f.Request):
    """A plugged disk. `leaf` is the active volume as the database knows it, null to take the storage's."""

    disk = f.nested(DiskRef)
    bus = f.choice("virtio", "scsi", "sata")
    boot_order = f.count(1, 99, allow_none=True, load_default=None)
    read_only = f.flag(load_default=False)
    leaf = f.uid(allow_none=True, load_default=None)


class VmNic(f.Request):
    """`network` is a libvirt network or null for user-mode networking (unplugged when `linked` is false)."""

    id = f.uid()
    mac = f.mac()
    model = f.choice("virtio", "e1000")
    network = f.name(allow_none=True, load_default=None)
    linked = f.flag(load_default=True)


class DirectBoot(f.Request):
    """Boot a kernel from the host's file system instead of from a disk; `serial_log` records the console."""

    kernel = f.path(allow_none=True, load_default=None)
    initrd = f.path(allow_none=True, load_default=None)
    cmdline = f.text(2048, load_default="")
    serial_log = f.path(allow_none=True, load_default=None)


class VmSpec(f.Request):
    """All that libvirt's XML is built from. `memory` in bytes. `lease`: the lockspace in which the VM has its lease,
    which the start takes (and creates where there is none); null starts it without one."""

    id = f.uid()
    name = f.name()
    memory = f.size(16 * 2**20)
    cpus = f.count(1, 512)
    firmware = f.choice("bios", "uefi")
    display = f.choice("none", "vnc")
    boot = f.nested(DirectBoot, allow_none=True, load_default=None)
    disks = f.many(VmDisk, 64)
    nics = f.many(VmNic, 32)
    lease = f.nested(Lockspace, allow_none=True, load_default=None)


class VmRef(f.Request):
    vm_id = f.uid()


class VmFacts(f.Fact):
    """`state` is QEMU's own: down only if no process with the VM's UUID lives. `unsure`: QEMU and libvirt
    differ (reason says how). `paused_by`: agent (around a pivot or a start), user, io_error, none."""

    vm_id = f.uid()
    state = f.choice("running", "paused", "down", "unsure")
    reason = f.text(load_default="")
    pid = f.count(allow_none=True, load_default=None)
    paused_by = f.choice("none", "agent", "user", "io_error", load_default="none")


# -- the look ---------------------------------------------------------------------------------------------


class LookDisk(f.Request):
    """With a claim, the look also raises the highest claim that the agent knows."""

    vm_id = f.uid(allow_none=True)
    disk = f.nested(DiskRef)
    claim = f.nested(Claim, allow_none=True, load_default=None)


class BlockJob(f.Fact):
    """A block job as one source reports it. `cur` and `end` in bytes, `speed` in bytes per second (0: no
    limit). `base_id`, `top_id` and `child_id` (the volume above top, null: top is active) where the source tells; of a
    pull, base is the lowest volume that leaves the chain. `type`: commit, pull; offline, offline_pull of a VM that is
    down; anything else is of others."""

    type = f.text()
    status = f.text()
    ready = f.flag()
    cur = f.size()
    end = f.size()
    speed = f.size()
    base_id = f.uid(allow_none=True, load_default=None)
    top_id = f.uid(allow_none=True, load_default=None)
    child_id = f.uid(allow_none=True, load_default=None)


class QemuView(f.Fact):
    """QEMU's own monitor. `chain`: volume ids, leaf first, the leaf being what QEMU writes to; an id is null
    where the node is a foreign file (see `paths`). `state` unreachable: a process lives, its monitor is mute."""

    state = f.choice("absent", "running", "paused", "unreachable")
    pid = f.count(allow_none=True)
    chain = f.chain()
    paths = f.words()
    job = f.nested(BlockJob, allow_none=True)


class LibvirtView(f.Fact):
    """libvirt's live XML and job. `mirror_ready` is `<mirror ready='yes'/>`."""

    state = f.choice("absent", "running", "paused", "shutoff", "away")
    chain = f.chain()
    mirror = f.flag()
    mirror_ready = f.flag()
    job = f.nested(BlockJob, allow_none=True)


class StorageView(f.Fact):
    """The image's folder. `leaf`: the one volume that holds every acknowledged write, null with `problem`, a sentence,
    and `trouble`, the same as an error: {"code", "fields"}."""

    volumes = f.many(VolumeFacts)
    leaf = f.uid(allow_none=True)
    problem = f.text(allow_none=True)
    trouble = f.anything(allow_none=True, load_default=None)
    free = f.size()


class DiskFacts(f.Fact):
    """One disk seen from every side, to be believed in this order: QEMU, storage, libvirt.
    `unsure` says how QEMU and libvirt differ, null when they agree. `paused_by_pivot`: the agent's own
    pause of an unfinished pivot is on. `offline`: the merge of a VM that is down, which this agent has under way."""

    vm_id = f.uid(allow_none=True)
    disk_id = f.uid()
    qemu = f.nested(QemuView)
    libvirt = f.nested(LibvirtView)
    storage = f.nested(StorageView)
    unsure = f.text(allow_none=True)
    paused_by_pivot = f.flag()
    offline = f.nested(BlockJob, allow_none=True, load_default=None)


# -- snapshots and merges ---------------------------------------------------------------------------------


class NewLeaf(f.Request):
    """`volume_id`: the new volume to be; `parent_id`: the leaf that it is put on."""

    disk = f.nested(DiskRef)
    volume_id = f.uid()
    parent_id = f.uid()


class SwitchLeaves(f.Request):
    """Take a snapshot: put a new empty volume on each disk's leaf, all at the same instant, running or not."""

    vm_id = f.uid()
    disks = f.many(NewLeaf, 64)
    quiesce = f.choice("auto", "required", "never", load_default="auto")
    claim = f.nested(Claim)


class Switched(f.Fact):
    quiesced = f.flag()
    live = f.flag()


class MergeAsk(f.Request):
    """Merge `top_id` down into `base_id`. `child_id`: the volume on top of top, null when top is active. `between`:
    the volumes between the two, the one below top first; they go down in the same job and are dropped with top."""

    vm_id = f.uid()
    disk = f.nested(DiskRef)
    base_id = f.uid()
    top_id = f.uid()
    child_id = f.uid(allow_none=True)
    between = f.uids(load_default=list)
    claim = f.nested(Claim)


class StartCommit(MergeAsk):
    """`bandwidth` in bytes per second, 0: no limit."""

    bandwidth = f.size(load_default=0)


class MergeOffline(MergeAsk):
    """The same for a VM that is down, by a process that holds the VM's `lease`. Begun by the first ask, found by the
    next ones, seen as `offline` in looks; what it failed with is told to one ask. `bandwidth` holds for all of it.
    `pull`: the other way; what base holds, with those between, goes up into top, which stands on `below_id` then (what
    base stands on now, null for nothing). The record is made too."""

    pull = f.flag(load_default=False)
    below_id = f.uid(allow_none=True, load_default=None)
    bandwidth = f.size(load_default=0)
    lease = f.nested(Lockspace)


class PullAsk(f.Request):
    """Take what `base_id` holds, with those `between` (the one below top first), up into `top_id`, which stands on
    `below_id` then: what base stands on now, null for nothing. `child_id`: the volume on top of top, null when top is
    active; a running VM's QEMU pulls into the active one only."""

    vm_id = f.uid()
    disk = f.nested(DiskRef)
    base_id = f.uid()
    top_id = f.uid()
    child_id = f.uid(allow_none=True, load_default=None)
    below_id = f.uid(allow_none=True)
    between = f.uids(load_default=list)
    claim = f.nested(Claim)


class StartPull(PullAsk):
    """`bandwidth` in bytes per second, 0: no limit."""

    bandwidth = f.size(load_default=0)

    @validates_schema
    def _active(self, ask: dict[str, Any], **_: Any) -> None:
        if ask["child_id"] is not None:
            raise ValidationError("A VM that runs is pulled into its active volume only.", "child_id")


class SetBandwidth(f.Request):
    vm_id = f.uid()
    disk = f.nested(DiskRef)
    bandwidth = f.size()
    claim = f.nested(Claim)


class CancelJob(f.Request):
    """Refuse what this flow asked for up to this claim and has not come yet, and wait for what is under way. With
    `base_id` and `top_id` also end the job with exactly these ends (`child_id` null: top is active; `pull`: the one
    that goes the other way). Another job is left alone: ForeignJob, or StaleClaim where a newer ask began it."""

    vm_id = f.uid()
    disk = f.nested(DiskRef)
    base_id = f.uid(allow_none=True, load_default=None)
    top_id = f.uid(allow_none=True, load_default=None)
    child_id = f.uid(allow_none=True, load_default=None)
    pull = f.flag(load_default=False)
    claim = f.nested(Claim)

    @validates_schema
    def _whole(self, ask: dict[str, Any], **_: Any) -> None:
        if (ask["base_id"] is None) != (ask["top_id"] is None) or (ask["child_id"] and ask["top_id"] is None):
            raise ValidationError("Both ends of the job, or none.", "base_id")


class Pivoted(f.Fact):
    """How long each part of the guest's standstill took, in milliseconds (0 where it was done before). Parts do not
    overlap, their sum is the standstill: `look_ms` is what asking QEMU's own monitor took."""

    suspend_ms = f.number()
    pivot_ms = f.number()
    look_ms = f.number(load_default=0.0)
    mark_ms = f.number()
    resume_ms = f.number()


class RecordChain(f.Request):
    """Make the storage's records follow what a living QEMU, or with none the headers, show: `chain` (leaf first) is
    the disk's, and nothing reads the `unused` volumes, which are marked illegal."""

    vm_id = f.uid(allow_none=True)
    disk = f.nested(DiskRef)
    chain = f.uids()
    unused = f.uids()
    claim = f.nested(Claim)


class Discard(f.Request):
    """Delete `volume_id`, and after it the dropped volumes `below` it in this order: one look at the domain for all."""

    vm_id = f.uid(allow_none=True)
    disk = f.nested(DiskRef)
    volume_id = f.uid()
    below = f.uids(load_default=list)
    claim = f.nested(Claim)


# -- news -------------------------------------------------------------------------------------------------


class HostFacts(f.Fact):
    """`memory` in bytes. `leases_fault`: why VMs with a lease cannot start there, or which run there without the
    protection of theirs; null where all is well."""

    cpus = f.count()
    memory = f.size()
    hostname = f.text()
    libvirt = f.text(allow_none=True)
    qemu = f.text(allow_none=True)
    kvm = f.flag()
    leases_fault = f.text(allow_none=True, load_default=None)


class Heartbeat(f.Fact):
    """Everything the agent knows of its host. `clock` is the agent's wall clock when it sent this;
    `agent_id` changes with every start of the agent, `sequence` counts up within one. `vms` lists every VM
    of ours that QEMU or libvirt knows there; when `problem` is set (libvirt away) the list may lack some."""

    host_id = f.uid()
    boot_id = f.text()
    agent_id = f.uid()
    sequence = f.count()
    clock = f.time()
    problem = f.text(allow_none=True)
    facts = f.nested(HostFacts)
    vms = f.many(VmFacts)
    lockspaces = f.many(LockspaceFacts, 1000, load_default=list)


class VmNews(VmFacts):
    host_id = f.uid()
    clock = f.time()


class JobNews(f.Fact):
    """A block job moved. `status`: running, ready, completed, failed, cancelled. `rate` in bytes per second."""

    host_id = f.uid()
    vm_id = f.uid()
    disk_id = f.uid()
    status = f.choice("running", "ready", "completed", "failed", "cancelled")
    cur = f.size()
    end = f.size()
    rate = f.size()
    clock = f.time()


_STORAGE = (
    errors.DomainUnusable,
    errors.StorageTimeout,
    errors.StorageFailed,
    errors.NoSpace,
    errors.BackingOutside,
)
_CHAIN = (
    *_STORAGE,
    errors.ChainBroken,
    errors.ChainDiffers,
    errors.VolumeInUse,
    errors.NotFound,
    errors.AlreadyExists,
    errors.TemplateVolume,
)
_VIRT = (errors.HypervisorAway, errors.HypervisorRefused, errors.VmUnsure, errors.VmWrongState)
_LEASE = (errors.LeasesUnfit, errors.LockspaceNotJoined, errors.LeaseHeld, errors.LeaseFailed)
_MERGE = (
    *_CHAIN,
    *_VIRT,
    errors.StaleClaim,
    errors.DiskBusy,
    errors.ForeignJob,
    errors.BackingTooLong,
    errors.JobFailed,
    errors.PivotFailed,
    errors.VmStopped,
    errors.QuiesceFailed,
)

create_domain = Rpc(OWNER, "create_domain", CreateDomain, DomainFacts, _STORAGE, deadline=30)
look_domain = Rpc(OWNER, "look_domain", OnDomain, DomainFacts, _STORAGE)
delete_domain = Rpc(OWNER, "delete_domain", OnDomain, f.Nothing, (*_STORAGE, errors.StillInUse), deadline=30)
scan_domain = Rpc(OWNER, "scan_domain", OnDomain, DomainScan, _CHAIN, deadline=120)

join_domain = Rpc(OWNER, "join_domain", Lockspace, LockspaceFacts, _STORAGE, deadline=15)
leave_domain = Rpc(
    OWNER, "leave_domain", OnDomain, LockspaceFacts, (*_STORAGE, *_LEASE, errors.StillInUse), deadline=15
)
drop_lease = Rpc(OWNER, "drop_lease", VmOnDomain, f.Nothing, (*_STORAGE, *_LEASE), deadline=30)

create_volume = Rpc(OWNER, "create_volume", CreateVolume, VolumeFacts, _CHAIN, deadline=60)
create_thin_disk = Rpc(OWNER, "create_thin_disk", CreateThinDisk, VolumeFacts, _CHAIN, deadline=60)
copy_disk = Rpc(OWNER, "copy_disk", CopyDisk, CopyFacts, (*_CHAIN, errors.DiskBusy), deadline=30)
delete_disk = Rpc(OWNER, "delete_disk", DeleteDisk, f.Nothing, _CHAIN, deadline=120)

start_vm = Rpc(OWNER, "start_vm", VmSpec, VmFacts, (*_CHAIN, *_VIRT, *_LEASE, errors.LeaseNotTaken), deadline=60)
shut_down_vm = Rpc(OWNER, "shut_down_vm", VmRef, VmFacts, _VIRT)
power_off_vm = Rpc(OWNER, "power_off_vm", VmRef, VmFacts, _VIRT, deadline=30)
look_vm = Rpc(OWNER, "look_vm", VmRef, VmFacts, _VIRT)

look_disk = Rpc(OWNER, "look_disk", LookDisk, DiskFacts, (*_CHAIN, *_VIRT, errors.StaleClaim), deadline=20)
switch_leaves = Rpc(OWNER, "switch_leaves", SwitchLeaves, Switched, _MERGE, deadline=90)
start_commit = Rpc(OWNER, "start_commit", StartCommit, f.Nothing, _MERGE, deadline=20)
merge_offline = Rpc(OWNER, "merge_offline", MergeOffline, f.Nothing, (*_MERGE, *_LEASE), deadline=30)
start_pull = Rpc(OWNER, "start_pull", StartPull, f.Nothing, _MERGE, deadline=20)
set_bandwidth = Rpc(OWNER, "set_bandwidth", SetBandwidth, f.Nothing, _MERGE)
cancel_job = Rpc(OWNER, "cancel_job", CancelJob, f.Nothing, _MERGE, deadline=30)
pivot = Rpc(OWNER, "pivot", MergeAsk, Pivoted, (*_MERGE, errors.LeaseFailed), deadline=20)
record_merge = Rpc(OWNER, "record_merge", MergeAsk, f.Nothing, _MERGE, deadline=15)
record_pull = Rpc(OWNER, "record_pull", PullAsk, f.Nothing, _MERGE, deadline=15)
record_chain = Rpc(OWNER, "record_chain", RecordChain, f.Nothing, _MERGE, deadline=120)
discard_volume = Rpc(OWNER, "discard_volume", Discard, f.Nothing, _MERGE, deadline=120)

heartbeat = Event(OWNER, "heartbeat", Heartbeat)
vm_changed = Event(OWNER, "vm_changed", VmNews)
job_changed = Event(OWNER, "job_changed", JobNews)
