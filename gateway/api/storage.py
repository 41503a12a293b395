"""Storage: domains and disks."""

from __future__ import annotations

from contracts import inventory, snapshots
from gateway.api.route import Route

ROUTES = (
    Route("GET", "/storage-domains", inventory.list_storage_domains, "List storage domains"),
    Route(
        "POST",
        "/storage-domains",
        inventory.create_storage_domain,
        "Make a storage domain in an empty directory",
        201,
        "/storage-domains/{id}",
        ("id",),
    ),
    Route("GET", "/storage-domains/{id}", inventory.get_storage_domain, "Show a storage domain"),
    Route("DELETE", "/storage-domains/{id}", inventory.delete_storage_domain, "Delete an empty storage domain", 204),
    Route("GET", "/disks", inventory.list_disks, "List disks"),
    Route("POST", "/disks", inventory.create_disk, "Make a disk", 201, "/disks/{id}", ("id",)),
    Route("GET", "/disks/{id}", inventory.get_disk, "Show a disk"),
    Route("PATCH", "/disks/{id}", inventory.plug_disk, "Plug a disk into a VM that is down, or unplug it"),
    Route("DELETE", "/disks/{id}", inventory.delete_disk, "Delete a disk with all its volumes", 204),
    Route("GET", "/disks/{disk_id}/chain", snapshots.get_chain, "Show the chain of a disk, from every side"),
    Route("GET", "/disks/{disk_id}/doctor", snapshots.diagnose_disk, "Hold every view of a disk against each other"),
    Route(
        "POST",
        "/disks/{disk_id}/doctor/repair",
        snapshots.repair_disk,
        "Make the database follow the storage, as a diagnosis showed it",
    ),
    Route("GET", "/storage-domains/{id}/doctor", snapshots.diagnose_domain, "Diagnose all disks of a storage domain"),
    Route("GET", "/storage-domains/{id}/disk-snapshots", snapshots.list_disk_snapshots, "List its disk snapshots"),
    Route("GET", "/storage-domains/{id}/leftovers", snapshots.list_leftovers, "List what is odd on a storage domain"),
    Route(
        "POST",
        "/storage-domains/{id}/disk-snapshots/rebuild",
        snapshots.rebuild_overview,
        "Scan the storage and make both lists anew",
    ),
)
