"""What is odd on a storage domain beside its disks' chains: foreign files, folders without a disk, disks without a
folder, damaged volumes, metadata that differ. Facts in, findings out; no I/O."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_FINDINGS = 1000  # that one answer tells; the rest is counted
REMOVED = "_remove_me_"  # what a deletion renames files to before it deletes them


@dataclass(frozen=True)
class Finding:
    """contracts.doctor.Finding."""

    code: str
    message: str
    action: str
    disk_id: str | None = None
    volume_id: str | None = None
    path: str | None = None


def of_domain(known: Mapping[str, Any], told: Mapping[str, Any]) -> list[Finding]:
    """Inventory's domain beside what its own metadata say."""
    fields = {"data_center_id": "data center", "layout": "version of the layout"}
    names = {"layout": "version"}
    found = []
    for key, words in fields.items():
        there = told[names.get(key, key)]
        if known[key] != there:
            message = f"The {words} is {known[key]} in the database and {there} on the storage."
            action = "Somebody else may have taken this domain: change nothing on it before you know who."
            found.append(Finding("metadata_differs", message, action, path=known["path"]))
    return found


def unusable(known: Mapping[str, Any], problem: Exception, advice: str) -> list[Finding]:
    return [Finding("domain_unusable", str(problem), advice, path=known["path"])]


def of_files(scan: Mapping[str, Any], disks: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """A scan of the whole domain beside inventory's disks on it."""
    known = {disk["id"]: disk for disk in disks}
    folders: dict[str, list[Mapping[str, Any]]] = {}
    for row in scan["volumes"]:
        folders.setdefault(row["disk_id"], []).append(row)
    found = [_without_disk(disk_id, rows) for disk_id, rows in sorted(folders.items()) if disk_id not in known]
    found += [_without_folder(disk) for disk_id, disk in sorted(known.items()) if _missing(disk, folders)]
    found += [_damaged(row) for rows in folders.values() for row in rows if row["problem"]]
    return found + [_foreign(file) for file in scan["foreign"]]


def _missing(disk: Mapping[str, Any], folders: Mapping[str, Any]) -> bool:
    return disk["state"] == "ok" and disk["id"] not in folders


def _without_disk(disk_id: str, rows: list[Mapping[str, Any]]) -> Finding:
    size = sum(row["actual_size"] for row in rows)
    message = f"The folder {disk_id} holds {len(rows)} volumes with {size} bytes, and is no disk of the database."
    action = "Look whether another system uses it; delete the folder by hand if nothing does."
    return Finding("folder_without_disk", message, action, disk_id, path=os.path.dirname(rows[0]["path"]))


def _without_folder(disk: Mapping[str, Any]) -> Finding:
    message = f"The disk {disk['alias']} has no volume on the storage."
    action = f"Bring its folder back from a backup, or delete it: drystone disk delete {disk['id']}"
    return Finding("disk_without_folder", message, action, disk["id"])


def _damaged(row: Mapping[str, Any]) -> Finding:
    action = f"See what depends on it: drystone doctor disk {row['disk_id']}"
    return Finding("damaged_volume", row["problem"], action, row["disk_id"], row["volume_id"], row["path"])


def _foreign(file: Mapping[str, Any]) -> Finding:
    path, backing = file["path"], file["backing"]
    if os.path.basename(path).startswith(REMOVED):
        message = f"{path} is left from a deletion that was cut off."
        return Finding("half_deleted", message, "Nothing refers to it: delete it by hand.", path=path)
    if backing is None:
        return Finding("foreign_file", f"{path} is no volume.", "Move it elsewhere if nothing needs it.", path=path)
    message = f"{path} is no volume, and stands on {backing}, which cannot be merged or deleted while it does."
    return Finding("foreign_file", message, "Move it elsewhere or delete it if nothing needs it.", path=path)


def without_disk(scan: Mapping[str, Any], disks: Iterable[Mapping[str, Any]], books: Collection[str]) -> list[Finding]:
    """Volumes in the folders of known disks that no snapshot and no disk knows. `books`: the volumes in the database;
    a disk of which it has none yet has its first volume alone. What a thin disk stands on is its template's."""
    first = {disk["id"]: disk["first_volume_id"] for disk in disks if disk["state"] == "ok"}
    rows = (row for row in scan["volumes"] if row["disk_id"] in first and not _of_template(row))
    return [
        _unknown(row) for row in rows if row["volume_id"] not in books and row["volume_id"] != first[row["disk_id"]]
    ]


def _of_template(row: Mapping[str, Any]) -> bool:
    return row["template_disk_id"] not in (None, row["disk_id"])


def _unknown(row: Mapping[str, Any]) -> Finding:
    message = f"The volume {row['volume_id']} with {row['actual_size']} bytes belongs to no disk or snapshot."
    action = f"See what it is, then adopt or discard it: drystone doctor disk {row['disk_id']}"
    return Finding("volume_without_disk", message, action, row["disk_id"], row["volume_id"], row["path"])
