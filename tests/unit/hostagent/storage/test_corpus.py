"""What our reader says of an image beside what `qemu-img info` says: odd ones of every kind, and damaged ones.

Where both read the file they must agree in every fact the scan uses. Where ours gives up, the scan must have
qemu-img's names. Where QEMU refuses, it opens nothing: ours may say more, never less than the name that stands there.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.hostagent import heads, qcow2
from tests.unit.hostagent.storage.room import run

SECRET = ["--object", "secret,id=s,data=abc"]
NAME_1023 = "./" * 509 + "base!"
DOUBLE = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base"}}'
SINGLE = "json:{'driver':'qcow2','file':{'driver':'file','filename':'base'}}"
DOTTED = 'json:{"driver":"qcow2","file.filename":"base"}'

CREATED = {
    "plain": ["-f", "qcow2"],
    "version 2": ["-f", "qcow2", "-o", "compat=0.10"],
    "on a base": ["-f", "qcow2", "-b", "base", "-F", "qcow2"],
    "version 2 on a base": ["-f", "qcow2", "-o", "compat=0.10", "-b", "base", "-F", "qcow2"],
    "on raw": ["-f", "qcow2", "-b", "raw", "-F", "raw"],
    "on a file that is not there": ["-f", "qcow2", "-u", "-b", "../away/base", "-F", "qcow2"],
    "name of 1023 bytes": ["-f", "qcow2", "-u", "-b", NAME_1023, "-F", "qcow2"],
    "name of 1023 bytes, small clusters": ["-f", "qcow2", "-o", "cluster_size=2k", "-u", "-b", NAME_1023, "-F", "raw"],
    "name that is odd": ["-f", "qcow2", "-u", "-b", "./ä \n'b\"", "-F", "qcow2"],
    "name with a protocol": ["-f", "qcow2", "-u", "-b", "file:base", "-F", "qcow2"],
    "name on a network": ["-f", "qcow2", "-u", "-b", "nbd://localhost/base", "-F", "raw"],
    "json name": ["-f", "qcow2", "-u", "-b", DOUBLE, "-F", "qcow2"],
    "json name, single quotes": ["-f", "qcow2", "-u", "-b", SINGLE, "-F", "qcow2"],
    "json name, dotted": ["-f", "qcow2", "-u", "-b", DOTTED, "-F", "qcow2"],
    "clusters of 512 bytes": ["-f", "qcow2", "-o", "cluster_size=512"],
    "clusters of 2 MiB": ["-f", "qcow2", "-o", "cluster_size=2M", "-b", "base", "-F", "qcow2"],
    "refcounts of 1 bit": ["-f", "qcow2", "-o", "refcount_bits=1"],
    "refcounts of 64 bits": ["-f", "qcow2", "-o", "refcount_bits=64"],
    "lazy refcounts": ["-f", "qcow2", "-o", "lazy_refcounts=on"],
    "subclusters": ["-f", "qcow2", "-o", "extended_l2=on"],
    "zstd": ["-f", "qcow2", "-o", "compression_type=zstd"],
    "all preallocated": ["-f", "qcow2", "-o", "preallocation=metadata"],
    "external data": ["-f", "qcow2", "-o", "data_file=data"],
    "external raw data": ["-f", "qcow2", "-o", "data_file=data,data_file_raw=on"],
    "encrypted on a base": [
        *SECRET,
        *("-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
        *("-b", "base", "-F", "qcow2"),
    ],
    "encrypted the old way": [*SECRET, "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s"],
    "qcow": ["-f", "qcow"],
    "qcow on a base": ["-f", "qcow", "-b", "base", "-F", "qcow2"],
    "qed": ["-f", "qed"],
    "qed on a base": ["-f", "qed", "-b", "base", "-F", "qcow2"],
    "vmdk": ["-f", "vmdk"],
    "vmdk, flat": ["-f", "vmdk", "-o", "subformat=monolithicFlat"],
    "vmdk, split": ["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
    "vmdk, for streams": ["-f", "vmdk", "-o", "subformat=streamOptimized"],
    "vmdk on a base": ["-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk"],
    "vdi": ["-f", "vdi"],
    "vpc": ["-f", "vpc"],
    "vpc, fixed": ["-f", "vpc", "-o", "subformat=fixed"],
    "vhdx": ["-f", "vhdx"],
    "parallels": ["-f", "parallels"],
    "raw": ["-f", "raw"],
}

CHANGED = {
    "written": [["qemu-io", "-c", "write 1M 64k", "made"]],
    "with an internal snapshot": [["qemu-img", "snapshot", "-c", "one", "made"]],
    "with a bitmap": [["qemu-img", "bitmap", "--add", "made", "b0"]],
    "resized": [["qemu-img", "resize", "-q", "made", "32M"]],
    "rebased to nothing": [["qemu-img", "rebase", "-u", "-b", "", "made"]],
    "rebased to a longer name": [["qemu-img", "rebase", "-u", "-b", "./././base", "-F", "qcow2", "made"]],
    "made old": [["qemu-img", "amend", "-o", "compat=0.10", "made"]],
    "committed": [["qemu-io", "-c", "write 0 64k", "made"], ["qemu-img", "commit", "-q", "made"]],
}

_INFO = ["qemu-img", "info", "-U", "--output=json", "made"]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "8M", cwd=tmp_path)
    run("qemu-img", "create", "-q", "-f", "vmdk", "base.vmdk", "8M", cwd=tmp_path)
    (tmp_path / "raw").write_bytes(b"\0" * 65536)
    return tmp_path


def make(room: Path, options: list[str]) -> Path:
    command = ["qemu-img", "create", "-q", *options, "made", "16M"]
    for _ in range(20):
        done = subprocess.run(command, cwd=room, capture_output=True, text=True, timeout=60, check=False)
        # on a busy machine qemu-img cannot measure how many rounds a key should take, and gives up
        if "accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return room / "made"


def told(made: Path) -> dict[str, Any] | None:
    """qemu-img's own answer, None if it refuses."""
    done = subprocess.run(_INFO, cwd=made.parent, capture_output=True, timeout=60, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def names(info: dict[str, Any]) -> set[str]:
    """All files that qemu-img says belong to an image, but itself."""
    details = info.get("format-specific", {}).get("data", {})
    extents = [e["filename"] for e in details.get("extents", [])]
    found = {info.get("backing-filename"), details.get("data-file"), *extents}
    return {os.path.basename(n) if n in extents else n for n in found if n} - {"made"}


def ours(made: Path) -> tuple[heads.Head, set[str]]:
    head = heads.read(str(made), "disk")
    inside = str(made.parent) + "/"
    return head, {n.removeprefix(inside) for n in head.names}


def as_told(text: str | None) -> str | None:
    """qemu-img shows bytes that are no UTF-8 as U+FFFD."""
    return text and text.encode(errors="surrogateescape").decode(errors="replace")


def agree(made: Path) -> None:
    """Fails where our answer is not qemu-img's."""
    info = told(made)
    head, mine = ours(made)
    if info is None:
        return
    # "?": QEMU takes a data file whose name is lost for none as long as nobody asks for data
    assert mine - {"?"} == names(info)
    if head.header is None:
        assert head.trouble is not None or not info["format"].startswith("qcow")
        return
    details = info.get("format-specific", {}).get("data", {})
    found = head.header
    assert info["format"] == ("qcow" if found.version == 1 else "qcow2")
    assert found.virtual_size == info["virtual-size"]
    assert found.backing == info.get("backing-filename")
    if found.version != 1:
        assert found.cluster_size == info["cluster-size"]
        assert as_told(found.backing_format) == info.get("backing-filename-format")
        assert {2: "0.10", 3: "1.1"}[found.version] == details["compat"]
        assert found.data_file in {details.get("data-file"), "?"}
        assert found.corrupt == details.get("corrupt", False)
        assert found.dirty == info.get("dirty-flag", False)


@pytest.mark.parametrize("case", CREATED)
def test_what_qemu_img_made_is_read_as_it_reads_it(case, room):
    made = make(room, CREATED[case])
    assert told(made) is not None
    agree(made)


@pytest.mark.parametrize("case", CHANGED)
def test_what_qemu_changed_is_read_as_qemu_img_reads_it(case, room):
    made = make(room, CREATED["on a base"])
    for command in CHANGED[case]:
        run(*command, cwd=room)
    assert told(made) is not None
    agree(made)


def test_what_a_killed_qemu_left_is_read_as_qemu_img_reads_it(room):
    made = make(room, CREATED["lazy refcounts"])
    dying = ["qemu-io", "-c", "write 0 64k", "-c", "abort", str(made)]
    assert subprocess.run(dying, capture_output=True, timeout=60, check=False).returncode != 0
    assert ours(made)[0].header.dirty
    agree(made)


@pytest.mark.parametrize("case", ["on a base", "version 2 on a base", "external data", "qcow on a base"])
def test_any_byte_of_a_header_may_be_damaged(case, room):
    made = make(room, CREATED[case])
    whole = bytearray(made.read_bytes())
    name = ours(made)[0].names[0].encode()
    for place in range(4, whole.index(name), 2):
        damaged = bytearray(whole)
        damaged[place] ^= 0x01 if place % 4 else 0x80
        made.write_bytes(damaged)
        agree(made)


@pytest.mark.parametrize("length", [0, 3, 4, 19, 71, 72, 103, 104, 111, 300, 511, 512, 4095, 4096, 65536, 65600])
def test_a_header_may_be_cut_anywhere(length, room):
    made = make(room, CREATED["on a base"])
    os.truncate(made, length)
    agree(made)


def test_a_corrupt_mark_is_read_as_qemu_img_reads_it(room):
    made = make(room, CREATED["on a base"])
    with made.open("rb+") as file:
        file.seek(79)
        file.write(b"\2")
    assert ours(made)[0].header.corrupt
    agree(made)


def test_a_name_far_behind_in_the_first_cluster_is_found(room):
    """QEMU never puts it there, other writers may: the first 4 KiB are not all that is read."""
    made = make(room, CREATED["on a base"])
    with made.open("rb+") as file:
        file.seek(8)
        file.write((60000).to_bytes(8, "big"))
        file.seek(60000)
        file.write(b"base")
    assert ours(made)[0].names == ("base",)
    agree(made)


def test_an_image_that_would_make_qemu_img_call_out_is_not_shown_to_it(room, tmp_path):
    """A descriptor whose extent lies behind a network: only the ids in it are told."""
    made = room / "made"
    made.write_text(
        '# Disk DescriptorFile\nversion=1\nRW 1 FLAT "nbd://10.9.9.9/0d5a2a4c-8a15-48de-a4eb-d8ad6a58caf3"\n'
    )
    assert heads.read(str(made), "disk") == heads.Head(ids=frozenset({"0d5a2a4c-8a15-48de-a4eb-d8ad6a58caf3"}))


def test_names_that_qemu_reads_and_python_does_not_are_taken_apart():
    quoted = r"json:{'file':{'driver':'file','filename':'it\'s \u00e4 \ud83d\ude00\\'}}"
    assert "it's ä 😀\\" in qcow2.mentioned_files(quoted)
