"""Persistent dirty bitmaps of qcow2 volumes, on which incremental backups stand, through an offline merge.

qemu-img counts what it copies in the enabled bitmaps of base, and forgets those that only top has. libvirt carries
them at a live merge; offline we do: after the copy each one of top, or of what lies between, is in base too. One that
a QEMU died with (`in-use`) is worth nothing in any layer: QEMU will not read it, so it cannot be carried.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from services.hostagent import layout

SECONDS = 60.0  # for one bitmap
STALE, ENABLED = "in-use", "auto"

Bitmap = dict[str, Any]  # of `qemu-img info`: name, granularity, flags


def carry(place: layout.Place, image: str, downwards: Sequence[str], base: str) -> dict[str, str]:
    """Bring the bitmaps of these volumes (leaf side first) down into base; asked again it does the same. Answers those
    that are lost with it, each with the reason: they cost a full backup, no data, so nothing fails for them."""
    found = {volume_id: read(place.file(image, volume_id)) for volume_id in (*downwards, base)}
    lost: dict[str, str] = {}
    for name in {name: None for volume_id in downwards for name in found[volume_id]}:  # each once, in order
        holders = [volume_id for volume_id in downwards if name in found[volume_id]]
        every = [*holders, base] if name in found[base] else holders
        stale = [volume_id for volume_id in every if STALE in found[volume_id][name]["flags"]]
        if stale:
            lost[name] = f"a process that died with volume {stale[0]} open left it unusable"
            continue
        why = _bring(place, image, found[holders[0]][name], holders, base, add=name not in found[base])
        if why:
            lost[name] = why
    return lost


def read(file: str) -> dict[str, Bitmap]:
    """The bitmaps of a volume that no QEMU writes to, by name; of a raw one there are none."""
    done = _qemu_img("info", "-U", "--output=json", file)
    if done.returncode != 0:
        return {}
    specific = json.loads(done.stdout).get("format-specific") or {}
    return {one["name"]: one for one in (specific.get("data") or {}).get("bitmaps") or ()}


def _bring(
    place: layout.Place, image: str, like: Bitmap, holders: Sequence[str], base: str, *, add: bool
) -> str | None:
    """Why it did not come about."""
    name, file = like["name"], place.file(image, base)
    if add:
        how = "--enable" if ENABLED in like["flags"] else "--disable"
        done = _qemu_img("bitmap", "--add", "-g", str(like["granularity"]), how, "-f", "qcow2", file, name)
        if done.returncode != 0:
            return _said(done)
    for holder in holders:
        source = place.file(image, holder)
        done = _qemu_img("bitmap", "--merge", name, "-b", source, "-F", "qcow2", "-f", "qcow2", file, name)
        if done.returncode != 0:
            return _said(done)
    return None


def _qemu_img(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["qemu-img", *words], capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"it took longer than {SECONDS:g} s")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return f"qemu-img: {done.stderr.strip()[:300] or done.returncode}"
