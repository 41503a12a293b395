"""Snapshots, and the long work on them: removals, jobs and merges."""

from __future__ import annotations

from contracts import snapshots
from gateway.api.route import Route

ROUTES = (
    Route(
        "POST",
        "/vms/{vm_id}/snapshots",
        snapshots.create_snapshot,
        "Take a snapshot of a VM",
        202,
        "/jobs/{id}",
        ("job_id", "id"),
    ),
    Route("GET", "/snapshots", snapshots.list_snapshots, "List snapshots"),
    Route("GET", "/snapshots/{id}", snapshots.get_snapshot, "Show a snapshot"),
    Route(
        "DELETE",
        "/snapshots/{id}",
        snapshots.remove_snapshot,
        "Remove a snapshot by merging its disks; the VM keeps running",
        202,
        "/jobs/{id}",
        ("job_id",),
    ),
    Route(
        "POST",
        "/removals",
        snapshots.remove_snapshots,
        "Remove many snapshots, or disks of snapshots, across VMs; or show the plan of it",
        202,
        "/jobs/{id}",
        ("job_id",),
    ),
    Route("GET", "/removals/{id}", snapshots.get_removal, "Show a removal with the result of each part"),
    Route("POST", "/removals/{id}/cancel", snapshots.cancel_removal, "Cancel what a removal has not done yet"),
    Route(
        "POST",
        "/removals/{id}/retries",
        snapshots.retry_removal,
        "Remove what an ended removal has left",
        202,
        "/jobs/{id}",
        ("job_id",),
    ),
    Route("GET", "/jobs", snapshots.list_jobs, "List jobs"),
    Route("GET", "/jobs/{id}", snapshots.get_job, "Show a job with its steps and progress"),
    Route("POST", "/jobs/{id}/cancel", snapshots.cancel_job, "Cancel a job before its point of no return"),
    Route("POST", "/jobs/{id}/resume", snapshots.resume_job, "Let a stuck job go on"),
    Route("PUT", "/jobs/{id}/bandwidth", snapshots.limit_job, "Limit the rate of a job"),
    Route("GET", "/merges", snapshots.list_merges, "List merges, the part of a removal on one disk"),
    Route("GET", "/merges/{id}", snapshots.get_merge, "Show a merge"),
)
