"""What exists: data centers, clusters, hosts, storage domains, VMs with their NICs, disks, templates.

The caller picks every id, so that a request repeated with the same id and body finds its work done; the same
id with another body is IdempotencyConflict. Changes name the version that was read (VersionMismatch).
"""

# budget: all that one service promises stands in one file
from __future__ import annotations

from contracts import errors, hostagent
from contracts import fields as f
from contracts.errors import Problem
from contracts.promise import Event, Rpc

OWNER = "inventory"


class ById(f.Request):
    id = f.uid()


class Page(f.Request):
    """A page of a list: `after` is the cursor of the last page's answer, `limit` the most rows."""

    after = f.text(256, allow_none=True, load_default=None)
    limit = f.count(1, 1000, load_default=100)


class Rows(f.Fact):
    """`next` is the cursor of the next page, null at the end; `total` counts all rows of the filter."""

    next = f.text(256, allow_none=True)
    total = f.count()


class Version(f.Request):
    """Which object, and the version that was read."""

    id = f.uid()
    version = f.count(1)


# -- data centers and clusters ----------------------------------------------------------------------------


class CreateDataCenter(f.Request):
    """`mac_first` to `mac_last` is the pool that NICs without an address draw from. `leases`: every VM with a disk
    takes a sanlock lease at each start. `io_timeout`: sanlock's unit of patience in seconds, set once for all hosts
    (10 is sanlock's own; joining a lockspace takes 3 of them, proving a host dead 8 and a minute)."""

    id = f.uid()
    name = f.name()
    description = f.text(load_default="")
    mac_first = f.mac(load_default="56:6f:1a:00:00:00")
    mac_last = f.mac(load_default="56:6f:1a:00:ff:ff")
    leases = f.flag(load_default=True)
    io_timeout = f.count(1, 60, load_default=10)


class DataCenter(f.Fact):
    id = f.uid()
    name = f.name()
    description = f.text()
    mac_first = f.mac()
    mac_last = f.mac()
    leases = f.flag(load_default=False)
    io_timeout = f.count(load_default=10)
    version = f.count(1)
    created_at = f.time()


class ChangeDataCenter(Version):
    """`leases` holds from each VM's next start on."""

    name = f.name(load_default=None, allow_none=True)
    description = f.text(load_default=None, allow_none=True)
    leases = f.flag(load_default=None, allow_none=True)


class DataCenters(Rows):
    items = f.many(DataCenter)


class CreateCluster(f.Request):
    id = f.uid()
    name = f.name()
    data_center_id = f.uid()
    description = f.text(load_default="")


class Cluster(f.Fact):
    id = f.uid()
    name = f.name()
    data_center_id = f.uid()
    description = f.text()
    version = f.count(1)
    created_at = f.time()


class ChangeCluster(Version):
    name = f.name(load_default=None, allow_none=True)
    description = f.text(load_default=None, allow_none=True)


class Clusters(Rows):
    items = f.many(Cluster)


class ListClusters(Page):
    data_center_id = f.uid(load_default=None, allow_none=True)


# -- hosts ------------------------------------------------------------------------------------------------


class CreateHost(f.Request):
    """`id` is the host id that the agent there was given at its installation (DRYSTONE_HOST_ID)."""

    id = f.uid()
    name = f.name()
    cluster_id = f.uid()


class Host(f.Fact):
    """`state`: new (its agent was never heard), up, problem (its agent says what is wrong), non_responsive.
    `clock_offset` in seconds, how far its clock is ahead of ours; `last_seen` null while new. `sanlock_id`: its number
    in the lockspaces of its data center; `lockspaces`: those it has joined or tries to join."""

    id = f.uid()
    name = f.name()
    cluster_id = f.uid()
    state = f.choice("new", "up", "problem", "non_responsive")
    problem = f.text(allow_none=True)
    facts = f.nested(hostagent.HostFacts, allow_none=True)
    boot_id = f.text(allow_none=True)
    clock_offset = f.number(allow_none=True)
    last_seen = f.time(allow_none=True)
    sanlock_id = f.count(allow_none=True, load_default=None)
    lockspaces = f.many(hostagent.LockspaceFacts, 1000, load_default=list)
    version = f.count(1)
    created_at = f.time()


class Hosts(Rows):
    items = f.many(Host)


class ListHosts(Page):
    cluster_id = f.uid(load_default=None, allow_none=True)


# -- storage domains --------------------------------------------------------------------------------------


class CreateStorageDomain(f.Request):
    """`path`: an existing empty directory (local, or a mount point that all hosts have). `host_id`: who writes
    the layout; null lets Drystone choose a host of the data center."""

    id = f.uid()
    name = f.name()
    data_center_id = f.uid()
    path = f.path()
    host_id = f.uid(load_default=None, allow_none=True)


class StorageDomain(f.Fact):
    """`state`: creating, active, inactive, deleting, failed (`problem` says why). Sizes in bytes as last seen."""

    id = f.uid()
    name = f.name()
    data_center_id = f.uid()
    path = f.path()
    type = f.choice("file")
    layout = f.count()
    state = f.choice("creating", "active", "inactive", "deleting", "failed")
    problem = f.text(allow_none=True)
    total = f.size(allow_none=True)
    free = f.size(allow_none=True)
    version = f.count(1)
    created_at = f.time()


class StorageDomains(Rows):
    items = f.many(StorageDomain)


class ListStorageDomains(Page):
    data_center_id = f.uid(load_default=None, allow_none=True)


# -- disks ------------------------------------------------------------------------------------------------


class CreateDisk(f.Request):
    """`capacity` in bytes, a multiple of 512. `vm_id` plugs it there (the VM must be down)."""

    id = f.uid()
    alias = f.name()
    domain_id = f.uid()
    capacity = f.size(512)
    format = f.choice("cow", "raw", load_default="cow")
    vm_id = f.uid(load_default=None, allow_none=True)
    bus = f.choice("virtio", "scsi", "sata", load_default="virtio")
    boot_order = f.count(1, 99, load_default=None, allow_none=True)


class Disk(f.Fact):
    """`first_volume_id`: the volume that the disk began with. `state`: creating, ok, locked (a template is being made
    from it), deleting, failed. `origin`: how it came to be: new and empty, a copy of `source_disk_id`, or thin on that
    disk of a template. `template_id`: the template that it belongs to. `copied` of at most `to_copy` bytes."""

    id = f.uid()
    alias = f.name()
    domain_id = f.uid()
    capacity = f.size()
    format = f.choice("cow", "raw")
    first_volume_id = f.uid()
    vm_id = f.uid(allow_none=True)
    bus = f.choice("virtio", "scsi", "sata")
    boot_order = f.count(allow_none=True)
    template_id = f.uid(allow_none=True, load_default=None)
    origin = f.choice("new", "copy", "thin", load_default="new")
    source_disk_id = f.uid(allow_none=True, load_default=None)
    copied = f.size(allow_none=True, load_default=None)
    to_copy = f.size(allow_none=True, load_default=None)
    state = f.choice("creating", "ok", "locked", "deleting", "failed")
    problem = f.text(allow_none=True)
    version = f.count(1)
    created_at = f.time()


class Disks(Rows):
    items = f.many(Disk)


class ListDisks(Page):
    domain_id = f.uid(load_default=None, allow_none=True)
    vm_id = f.uid(load_default=None, allow_none=True)


class PlugDisk(Version):
    """Plug a disk into a VM that is down, or unplug it (`vm_id` null)."""

    vm_id = f.uid(allow_none=True)


# -- VMs --------------------------------------------------------------------------------------------------


class NewNic(f.Request):
    """`mac` null: the next free one of the data center's pool."""

    id = f.uid()
    name = f.name()
    mac = f.mac(load_default=None, allow_none=True)
    model = f.choice("virtio", "e1000", load_default="virtio")
    network = f.name(load_default=None, allow_none=True)
    linked = f.flag(load_default=True)


class Nic(f.Fact):
    id = f.uid()
    name = f.name()
    mac = f.mac()
    model = f.choice("virtio", "e1000")
    network = f.name(allow_none=True)
    linked = f.flag()


class CreateVm(f.Request):
    """`memory` in bytes. `template_id`: what is left out is the template's (its NICs get new addresses), and the VM
    gets a disk for each of the template's: `clone` thin, an overlay on the template's volume, or full, a copy.
    Without a template memory is needed, and the rest is 1 CPU, bios, vnc, no NIC."""

    id = f.uid()
    name = f.name()
    cluster_id = f.uid()
    description = f.text(load_default="")
    memory = f.size(16 * 2**20, load_default=None, allow_none=True)
    cpus = f.count(1, 512, load_default=None, allow_none=True)
    firmware = f.choice("bios", "uefi", load_default=None, allow_none=True)
    display = f.choice("none", "vnc", load_default=None, allow_none=True)
    boot = f.nested(hostagent.DirectBoot, load_default=None, allow_none=True)
    nics = f.many(NewNic, 32, load_default=None, allow_none=True)
    template_id = f.uid(load_default=None, allow_none=True)
    clone = f.choice("thin", "full", load_default="thin")


class ChangeVm(Version):
    """Only the fields that are given change; hardware changes need the VM down."""

    name = f.name(load_default=None, allow_none=True)
    description = f.text(load_default=None, allow_none=True)
    memory = f.size(16 * 2**20, load_default=None, allow_none=True)
    cpus = f.count(1, 512, load_default=None, allow_none=True)
    firmware = f.choice("bios", "uefi", load_default=None, allow_none=True)
    display = f.choice("none", "vnc", load_default=None, allow_none=True)
    boot = f.nested(hostagent.DirectBoot, load_default=None, allow_none=True)
    nics = f.many(NewNic, 32, load_default=None, allow_none=True)


class AskLease(f.Request):
    """Which lease an offline writer on this host takes to write the VM's disks."""

    id = f.uid()
    host_id = f.uid()


class VmLease(f.Fact):
    """The one that the VM's next start takes, as this host joins its lockspace; null: the VM takes none. `wait`:
    seconds for which nobody begins to write, because a start was refused: who asks for it again goes first."""

    lease = f.nested(hostagent.Lockspace, allow_none=True)
    wait = f.number(load_default=0.0)


VM_STATES = ("down", "starting", "running", "paused", "shutting_down", "powering_off", "unsure", "unknown", "deleting")


class Vm(f.Fact):
    """`state` follows QEMU: `unsure` when QEMU and libvirt differ, `unknown` when its host is silent.
    `deleting`: its disks are being deleted, then it goes. `host_id`: where it runs or may run, null when it is
    down. `disks` are the plugged ones. `template_id`: what it was made from, which a full clone may outlive.
    `lease_domain_id`: the domain that holds its lease, null before its first start with one."""

    id = f.uid()
    name = f.name()
    cluster_id = f.uid()
    data_center_id = f.uid()
    description = f.text()
    memory = f.size()
    cpus = f.count()
    firmware = f.choice("bios", "uefi")
    display = f.choice("none", "vnc")
    boot = f.nested(hostagent.DirectBoot, allow_none=True)
    nics = f.many(Nic)
    disks = f.many(Disk)
    state = f.choice(*VM_STATES)
    reason = f.text()
    host_id = f.uid(allow_none=True)
    template_id = f.uid(allow_none=True, load_default=None)
    lease_domain_id = f.uid(allow_none=True, load_default=None)
    version = f.count(1)
    created_at = f.time()


class Vms(Rows):
    items = f.many(Vm)


class ListVms(Page):
    cluster_id = f.uid(load_default=None, allow_none=True)
    host_id = f.uid(load_default=None, allow_none=True)
    name = f.name(load_default=None, allow_none=True)


class StartVm(f.Request):
    """`host_id` null lets Drystone choose a host of the VM's cluster."""

    id = f.uid()
    host_id = f.uid(load_default=None, allow_none=True)


# -- templates --------------------------------------------------------------------------------------------


class CreateTemplate(f.Request):
    """From a VM that is down: its hardware and a copy of each of its disks as they are now, without snapshots."""

    id = f.uid()
    name = f.name()
    vm_id = f.uid()
    description = f.text(load_default="")


class TemplateNic(f.Fact):
    name = f.name()
    model = f.choice("virtio", "e1000")
    network = f.name(allow_none=True)
    linked = f.flag()


class Template(f.Fact):
    """`state`: creating while disks are copied, ok, failed (`problem` says why; repeat the request or delete it),
    deleting. `vm_id`: the VM it was made from, which may be gone."""

    id = f.uid()
    name = f.name()
    cluster_id = f.uid()
    data_center_id = f.uid()
    vm_id = f.uid()
    description = f.text()
    memory = f.size()
    cpus = f.count()
    firmware = f.choice("bios", "uefi")
    display = f.choice("none", "vnc")
    boot = f.nested(hostagent.DirectBoot, allow_none=True)
    nics = f.many(TemplateNic)
    disks = f.many(Disk)
    state = f.choice("creating", "ok", "failed", "deleting")
    problem = f.text(allow_none=True)
    version = f.count(1)
    created_at = f.time()


class Templates(Rows):
    items = f.many(Template)


class ListTemplates(Page):
    cluster_id = f.uid(load_default=None, allow_none=True)
    name = f.name(load_default=None, allow_none=True)


class Gone(f.Fact):
    """Something was deleted."""

    id = f.uid()


_NEW = (errors.AlreadyExists, errors.IdempotencyConflict, errors.NotFound)
_CHANGE = (errors.NotFound, errors.VersionMismatch, errors.AlreadyExists)
_HOST = (errors.HostNotUp, errors.NoHost, errors.ClockOff)
_POWER: tuple[type[Problem], ...] = (
    *_HOST,
    errors.NotFound,
    *hostagent.start_vm.errors,
    errors.DomainNotActive,
    errors.DiskWrongState,
)
_PLUG = (errors.VmWrongState, errors.VmUnsure, errors.DiskWrongState, errors.LimitExceeded, errors.AlreadyExists)

create_data_center = Rpc(OWNER, "create_data_center", CreateDataCenter, DataCenter, (*_NEW, errors.LimitExceeded))
get_data_center = Rpc(OWNER, "get_data_center", ById, DataCenter, (errors.NotFound,))
list_data_centers = Rpc(OWNER, "list_data_centers", Page, DataCenters)
change_data_center = Rpc(OWNER, "change_data_center", ChangeDataCenter, DataCenter, _CHANGE)
delete_data_center = Rpc(OWNER, "delete_data_center", Version, Gone, (*_CHANGE, errors.StillInUse))

create_cluster = Rpc(OWNER, "create_cluster", CreateCluster, Cluster, _NEW)
get_cluster = Rpc(OWNER, "get_cluster", ById, Cluster, (errors.NotFound,))
list_clusters = Rpc(OWNER, "list_clusters", ListClusters, Clusters)
change_cluster = Rpc(OWNER, "change_cluster", ChangeCluster, Cluster, _CHANGE)
delete_cluster = Rpc(OWNER, "delete_cluster", Version, Gone, (*_CHANGE, errors.StillInUse))

create_host = Rpc(OWNER, "create_host", CreateHost, Host, (*_NEW, errors.LimitExceeded))
get_host = Rpc(OWNER, "get_host", ById, Host, (errors.NotFound,))
list_hosts = Rpc(OWNER, "list_hosts", ListHosts, Hosts)
delete_host = Rpc(OWNER, "delete_host", Version, Gone, (*_CHANGE, errors.StillInUse))

create_storage_domain = Rpc(
    OWNER,
    "create_storage_domain",
    CreateStorageDomain,
    StorageDomain,
    (*_NEW, *_HOST, *hostagent.create_domain.errors),
    deadline=40,
)
get_storage_domain = Rpc(OWNER, "get_storage_domain", ById, StorageDomain, (errors.NotFound,))
list_storage_domains = Rpc(OWNER, "list_storage_domains", ListStorageDomains, StorageDomains)
delete_storage_domain = Rpc(
    OWNER,
    "delete_storage_domain",
    Version,
    Gone,
    (*_CHANGE, *_HOST, *hostagent.delete_domain.errors),
    deadline=40,
)

create_disk = Rpc(
    OWNER,
    "create_disk",
    CreateDisk,
    Disk,
    (*_NEW, *_HOST, *hostagent.create_volume.errors, errors.DomainNotActive, *_PLUG),
    deadline=70,
)
get_disk = Rpc(OWNER, "get_disk", ById, Disk, (errors.NotFound,))
list_disks = Rpc(OWNER, "list_disks", ListDisks, Disks)
plug_disk = Rpc(OWNER, "plug_disk", PlugDisk, Disk, (*_CHANGE, *_PLUG, errors.StillInUse, errors.DiskBusy), deadline=20)
delete_disk = Rpc(
    OWNER,
    "delete_disk",
    Version,
    Gone,
    (
        *_CHANGE,
        *_HOST,
        *hostagent.delete_disk.errors,
        errors.DomainNotActive,
        *_PLUG,
        errors.StillInUse,
        errors.DiskBusy,
    ),
    deadline=150,
)

_COPY: tuple[type[Problem], ...] = (
    *_HOST,
    *hostagent.copy_disk.errors,
    *hostagent.create_thin_disk.errors,
    *hostagent.delete_disk.errors,
    errors.DomainNotActive,
    errors.DiskWrongState,
    errors.DiskBusy,
    errors.StillInUse,
)
create_vm = Rpc(
    OWNER,
    "create_vm",
    CreateVm,
    Vm,
    (*_NEW, errors.MacTaken, errors.MacPoolEmpty, *_COPY, errors.TemplateWrongState),
    deadline=150,
)
get_vm = Rpc(OWNER, "get_vm", ById, Vm, (errors.NotFound,))
list_vms = Rpc(OWNER, "list_vms", ListVms, Vms)
change_vm = Rpc(
    OWNER,
    "change_vm",
    ChangeVm,
    Vm,
    (*_CHANGE, errors.VmWrongState, errors.VmUnsure, errors.MacTaken, errors.MacPoolEmpty),
)
delete_vm = Rpc(
    OWNER,
    "delete_vm",
    Version,
    Gone,
    (
        *_CHANGE,
        *_HOST,
        *_PLUG,
        *hostagent.delete_disk.errors,
        errors.DomainNotActive,
        errors.StillInUse,
        errors.DiskBusy,
    ),
    deadline=150,
)
vm_lease = Rpc(
    OWNER,
    "vm_lease",
    AskLease,
    VmLease,
    (*_HOST, errors.NotFound, errors.VmWrongState, *hostagent.drop_lease.errors),
    deadline=40,
)
start_vm = Rpc(OWNER, "start_vm", StartVm, Vm, _POWER, deadline=70)
shut_down_vm = Rpc(OWNER, "shut_down_vm", ById, Vm, _POWER, deadline=20)
power_off_vm = Rpc(OWNER, "power_off_vm", ById, Vm, _POWER, deadline=40)

create_template = Rpc(
    OWNER,
    "create_template",
    CreateTemplate,
    Template,
    (*_NEW, *_COPY, errors.VmWrongState, errors.VmUnsure),
    deadline=150,
)
get_template = Rpc(OWNER, "get_template", ById, Template, (errors.NotFound,))
list_templates = Rpc(OWNER, "list_templates", ListTemplates, Templates)
delete_template = Rpc(
    OWNER,
    "delete_template",
    Version,
    Gone,
    (*_CHANGE, *_HOST, *hostagent.delete_disk.errors, errors.DomainNotActive, errors.StillInUse, errors.DiskBusy),
    deadline=150,
)

data_center_changed = Event(OWNER, "data_center_changed", DataCenter)
data_center_deleted = Event(OWNER, "data_center_deleted", Gone)
cluster_changed = Event(OWNER, "cluster_changed", Cluster)
cluster_deleted = Event(OWNER, "cluster_deleted", Gone)
host_changed = Event(OWNER, "host_changed", Host)
host_deleted = Event(OWNER, "host_deleted", Gone)
storage_domain_changed = Event(OWNER, "storage_domain_changed", StorageDomain)
storage_domain_deleted = Event(OWNER, "storage_domain_deleted", Gone)
disk_changed = Event(OWNER, "disk_changed", Disk)
disk_deleted = Event(OWNER, "disk_deleted", Gone)
vm_changed = Event(OWNER, "vm_changed", Vm)
vm_deleted = Event(OWNER, "vm_deleted", Gone)
template_changed = Event(OWNER, "template_changed", Template)
template_deleted = Event(OWNER, "template_deleted", Gone)
