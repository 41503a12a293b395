"""A file domain as a whole: make it, look at it, remove it. Runs in the storage child.

A domain is built in a hidden folder beside its place and renamed there when all of it is on the disk, so nobody
ever sees half of one. sanlock's own tool formats `ids` and `leases` (its `direct` commands need no daemon); where
it is not installed the files stay zeroed, and joining says that `ids` is no lockspace.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from typing import Any

from chassis import crash
from contracts import errors
from services.hostagent import files, layout, qcow2

NEEDS = 3 * layout.MiB  # what an empty domain takes at most; most of its files are sparse
MAX_ENTRIES = 10_000  # looked at in a mount root

_SPARSE = {"ids": layout.MiB, "leases": 101 * layout.MiB, "inbox": 16 * layout.MiB, "outbox": 16 * layout.MiB}
_XLEASES = 3 * layout.MiB  # lockspace (unused), index, sanlock's own; leases of VMs extend it
_FORMAT_SECONDS = 20

Ref = dict[str, Any]


def create(domain: Ref, name: str, data_center_id: str, io_timeout: int = 10) -> dict[str, Any]:
    """DomainFacts of a new V5 domain; one that is there already must be the same. `io_timeout` in seconds: the
    lockspace's, by which who joins first waits."""
    place = layout.Place(domain["path"], domain["id"])
    with files.guard("create_domain", place.root, place.id, NEEDS):
        _check_root(place, others_allowed=False)
        if os.path.lexists(place.root):
            return _same(place, name, data_center_id)
        _refuse_strangers(place)
        _refuse_full(place.path, place.id)
        stage = f"{place.path.rstrip('/')}/.{place.id}{layout.NEW}"
        try:
            _build(stage, layout.new_domain(place.id, name, data_center_id, place.path), io_timeout)
        except (OSError, errors.Problem):
            shutil.rmtree(stage, ignore_errors=True)
            raise
        crash.point("domain.create.built")
        os.rename(stage, place.root)
        files.sync_folder(place.path)
        crash.point("domain.create.renamed")
    return look(domain)


def look(domain: Ref) -> dict[str, Any]:
    """DomainFacts as the storage has them; DomainUnusable says why it is no domain."""
    place = layout.Place(domain["path"], domain["id"])
    with files.guard("look_domain", place.root, place.id):
        _check_root(place, others_allowed=False)
        metadata = _metadata(place)
        total, free = files.free(place.root)
    pools = [p for p in metadata.pools if layout.is_uuid(p)]
    return {
        "id": place.id,
        "name": metadata.name,
        "version": metadata.version,
        "data_center_id": pools[0] if pools else None,
        "total": total,
        "free": free,
    }


def delete(domain: Ref) -> None:
    """Remove a domain that has no images; one that is gone is done."""
    place = layout.Place(domain["path"], domain["id"])
    gone = f"{place.path.rstrip('/')}/{layout.REMOVED}{place.id}"
    with files.guard("delete_domain", place.root, place.id):
        _check_root(place, others_allowed=True)
        if os.path.lexists(place.root):
            _metadata(place)
            _refuse_images(place)
            os.rename(place.root, gone)
            files.sync_folder(place.path)
            crash.point("domain.delete.renamed")
        if os.path.lexists(gone):
            shutil.rmtree(gone)
            crash.point("domain.delete.removed")
            files.sync_folder(place.path)


def opened(domain: Ref, writable: bool = False) -> layout.Place:
    """The place of a domain whose metadata was read and is right; `writable`: and of the version that we write."""
    place = layout.Place(domain["path"], domain["id"])
    with files.guard("open_domain", place.root, place.id):
        metadata = _metadata(place)
    if writable and metadata.version != layout.VERSION:
        reason = f"it has layout version {metadata.version}, only version {layout.VERSION} is written"
        raise _unusable(place.root, reason, "Upgrade it with the software that made it, or use another domain.")
    return place


# -- checks -----------------------------------------------------------------------------------------------


def _unusable(path: str, reason: str, advice: str) -> errors.DomainUnusable:
    return errors.DomainUnusable(path=path, reason=reason, advice=advice)


def _check_root(place: layout.Place, others_allowed: bool) -> None:
    """The mount point is a directory and holds no other domain."""
    if not os.path.isdir(place.path):
        is_there = "it is not a directory" if os.path.lexists(place.path) else "it does not exist"
        raise _unusable(place.path, is_there, "Name a directory (a mount point) that exists on this host.")
    others = [] if others_allowed else _domains_in(place.path, but=place.id)
    if others:
        reason = f"the directory holds another domain, {others[0]}"
        raise _unusable(place.path, reason, "Use a directory of its own for each domain.")


def _refuse_strangers(place: layout.Place) -> None:
    """A new domain gets a directory of its own: a path that was mistyped must not become one. What file systems and
    storage servers put there themselves (lost+found, hidden snapshots), and what is half deleted, does not count."""
    with os.scandir(place.path) as entries:
        for entry in entries:
            if not entry.name.startswith((".", layout.REMOVED)) and entry.name != "lost+found":
                reason = f"the directory is not empty: it holds {qcow2.shown(entry.name)}"
                raise _unusable(place.path, reason, "Use an empty directory of its own for each domain.")


def _domains_in(path: str, but: str) -> list[str]:
    found = []
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries):
            if number >= MAX_ENTRIES:
                reason = f"it has more than {MAX_ENTRIES} entries"
                raise _unusable(path, reason, "Use a directory of its own for each domain.")
            if layout.is_uuid(entry.name) and entry.name != but and os.path.isdir(f"{entry.path}/dom_md"):
                found.append(entry.name)
    return sorted(found)


def _metadata(place: layout.Place) -> layout.Domain:
    """The metadata of the domain that must be at this place."""
    advice = "Name the directory in which the folder of the domain lies."
    if not os.path.isdir(place.path):
        _check_root(place, others_allowed=True)
    if not os.path.lexists(place.root):
        others = _domains_in(place.path, but=place.id)
        has = f"holds the domain {others[0]}, not {place.id}" if others else f"holds no domain {place.id}"
        raise _unusable(place.path, f"the directory {has}", advice)
    for folder in (place.root, place.dom_md, place.images):
        if not os.path.lexists(folder) or not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise _unusable(place.root, f"{os.path.relpath(folder, place.path)} is not a directory in it", advice)
    try:
        data = files.read(f"{place.dom_md}/metadata", layout.MAX_DOMAIN_BYTES + 1)
    except FileNotFoundError:
        raise _unusable(place.root, "dom_md/metadata is missing", advice) from None
    metadata = layout.read_domain(data, place.root)
    if metadata.id != place.id:
        reason = f"its metadata names another domain, {metadata.id[:60]}"
        raise _unusable(place.root, reason, "Restore its metadata, or name the right domain.")
    return metadata


def _same(place: layout.Place, name: str, data_center_id: str) -> dict[str, Any]:
    metadata = _metadata(place)
    if metadata.name != name or metadata.pools != (data_center_id,):
        raise _unusable(
            place.root,
            f"a domain with this id is there already, named {metadata.name[:60]!r}",
            "Use a new id for a new domain, or import this one.",
        )
    return look({"id": place.id, "path": place.path})


def _refuse_images(place: layout.Place) -> None:
    """A domain is not deleted with anything in it, whoever put it there; what is half deleted does not count."""
    kept = [name for name in os.listdir(place.images) if not name.startswith(layout.REMOVED)]
    if kept:
        by = f"{len(kept)} disks or files in its images folder, {min(kept)} for one"
        raise errors.StillInUse(kind="storage domain", id=place.id, by=by)


def _refuse_full(path: str, domain_id: str) -> None:
    has = files.free(path)[1]
    if has < NEEDS:
        raise errors.NoSpace(action="create_domain", domain_id=domain_id, needs=NEEDS, has=has)


# -- building ---------------------------------------------------------------------------------------------


def _build(stage: str, metadata: layout.Domain, io_timeout: int) -> None:
    """The whole tree, synced, metadata last; a stage that a crash left behind is made anew."""
    shutil.rmtree(stage, ignore_errors=True)
    for folder in ("", "/dom_md", "/images", "/master", "/master/vms", "/master/tasks"):
        os.mkdir(stage + folder, 0o775)
    dom_md = f"{stage}/dom_md"
    for name, size in _SPARSE.items():
        files.make_sparse(f"{dom_md}/{name}", size)
    files.make_sparse(f"{dom_md}/{files.LOCKS}", 0)
    _format_leases(dom_md, metadata.id, io_timeout)
    _make_xleases(f"{dom_md}/xleases", metadata.id)
    crash.point("domain.create.before_metadata")
    files.write(f"{dom_md}/metadata", layout.write_domain(metadata))
    for folder in ("/master", ""):
        files.sync_folder(stage + folder)


def _format_leases(dom_md: str, domain_id: str, io_timeout: int) -> None:
    """`ids` becomes the lockspace, slot 1 of `leases` the resource SDM."""
    if shutil.which("sanlock") is None:
        return
    # Relative names: a path may have characters that the tool's own syntax uses.
    for what in (["-s", f"{domain_id}:0:ids:0"], ["-r", f"{domain_id}:SDM:leases:{layout.MiB}"]):
        done = subprocess.run(
            ["sanlock", "direct", "init", "-o", str(io_timeout), *what],
            cwd=dom_md,
            capture_output=True,
            text=True,
            timeout=_FORMAT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            _refuse_full(dom_md, domain_id)  # the tool does not say so
            reason = f"sanlock could not format it: {(done.stderr or done.stdout).strip()[:200]}"
            raise errors.StorageFailed(action="create_domain", path=dom_md, reason=reason)
    for name in ("ids", "leases"):
        files.make_sparse(f"{dom_md}/{name}", _SPARSE[name])  # the same size again: syncs what the tool wrote


def _make_xleases(path: str, domain_id: str) -> None:
    files.make_sparse(path, _XLEASES)
    with open(path, "rb+", buffering=0) as file:
        file.seek(layout.MiB)
        file.write(layout.empty_lease_index(domain_id, int(time.time())))
        os.fsync(file.fileno())
