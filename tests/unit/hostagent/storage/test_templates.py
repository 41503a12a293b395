"""A template's volume, thin disks on it and full copies of it: real files, real qemu-img, real child processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from contracts import errors, hostagent
from services.hostagent import files
from tests.unit.hostagent.storage.room import Disk, MiB, qemu_chain, run

COPY_POINTS = [
    "volume.create.after_intent",
    "volume.copy.converted",
    "volume.create.before_image",
    "volume.create.after_image",
    "volume.create.after_lease",
    "volume.create.after_parent",
    "volume.create.after_meta",
]
THIN_POINTS = [
    "volume.create.after_intent",
    "volume.thin.linked.data",
    "volume.thin.linked.lease",
    "volume.thin.linked.meta",
    "volume.create.before_image",
    "volume.create.after_image",
    "volume.create.after_lease",
    "volume.create.after_parent",
    "volume.create.after_meta",
]


def write(path: Path, pattern: int, at: str, length: str) -> None:
    run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {at} {length}", str(path))


def same(one: Path, other: Path) -> None:
    """Both read the same, whatever chains are below them."""
    run("qemu-img", "compare", "-U", str(one), str(other))


@pytest.fixture
def source(disk: Disk) -> Disk:
    """A disk of two volumes, both with data."""
    v1, v2 = disk.chain("v1", "v2")
    write(disk.folder / v1, 0x11, "0", "2M")
    write(disk.folder / v2, 0x22, "1M", "2M")
    return disk


class Copy(Disk):
    """A disk that is to be a copy, or a thin one."""

    def copied(self, source: Disk, volume: str, shared: bool = False) -> dict:
        return self.storage.copy_volume(
            self.domain, self.image, volume, source.domain, source.image, shared, deadline=60
        )

    def asked(self, source: Disk, volume: str, shared: bool = True) -> dict:
        """The arguments of copy_volume."""
        return {
            **{"domain": self.domain, "image": self.image, "volume": volume},
            **{"source_domain": source.domain, "source_image": source.image, "shared": shared},
        }

    def thin(self, template: Disk, base: str, volume: str) -> dict:
        return self.storage.create_thin(self.domain, self.image, volume, template.image, base)

    def asked_thin(self, template: Disk, base: str, volume: str) -> dict:
        """The arguments of create_thin."""
        names = {"domain": self.domain, "image": self.image, "volume": volume}
        return {**names, "template_image": template.image, "template_volume": base}


@pytest.fixture
def copy(storage, domain, ids) -> Copy:
    return Copy(storage, domain, ids.copy, ids)


@pytest.fixture
def template(storage, domain, ids, source) -> Copy:
    """A template's disk with its volume `ids.base`."""
    made = Copy(storage, domain, ids.template, ids)
    made.copied(source, ids.base, shared=True)
    return made


@pytest.fixture
def thin(storage, domain, ids, template) -> Copy:
    made = Copy(storage, domain, ids.thin, ids)
    made.thin(template, ids.base, ids.t1)
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# -- the copy ---------------------------------------------------------------------------------------------


def test_a_copy_is_one_volume_that_reads_like_the_chain(source, copy, ids):
    facts = copy.copied(source, ids.c1, shared=True)
    same(source.folder / ids.v2, copy.folder / ids.c1)
    assert [node.get("backing-filename") for node in qemu_chain(copy.folder / ids.c1)] == [None]
    assert copy.files() == [ids.c1, f"{ids.c1}.lease", f"{ids.c1}.meta"]
    told = hostagent.VolumeFacts().load({k: v for k, v in facts.items() if k != "backing"})
    assert (told["volume_type"], told["template_disk_id"], told["legality"]) == ("shared", copy.image, "legal")
    assert "VOLTYPE=SHARED\n" in (copy.folder / f"{ids.c1}.meta").read_text()


def test_a_full_clone_is_an_ordinary_disk(template, copy, ids):
    facts = copy.copied(template, ids.c1)
    assert (facts["volume_type"], facts["template_disk_id"]) == ("leaf", None)
    same(template.folder / ids.base, copy.folder / ids.c1)
    assert os.stat(template.folder / ids.base).st_nlink == 1


def test_a_raw_disk_becomes_a_cow_copy(storage, domain, disk, copy, ids):
    storage.create_volume(domain, disk.image, ids.v1, None, 4 * MiB, "raw")
    (disk.folder / ids.v1).write_bytes(bytes(range(256)) * (4 * MiB // 256))
    assert copy.copied(disk, ids.c1)["format"] == "cow"
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(disk.folder / ids.v1), str(copy.folder / ids.c1))


def test_copying_twice_is_copying_once(source, copy, ids):
    copy.copied(source, ids.c1, shared=True)
    before = os.stat(copy.folder / ids.c1)
    copy.copied(source, ids.c1, shared=True)
    assert os.path.samestat(before, os.stat(copy.folder / ids.c1))
    with pytest.raises(errors.AlreadyExists):
        copy.copied(source, ids.c1, shared=False)


@pytest.mark.parametrize("point", COPY_POINTS)
def test_a_copy_that_died_anywhere_is_done_anew(source, copy, ids, die_at, point):
    die_at(point, "copy_volume", **copy.asked(source, ids.c1))
    done = (copy.folder / f"{ids.c1}.meta").exists()
    assert done is (point == "volume.create.after_meta")
    if not done:
        write(source.folder / ids.v2, 0x33, "8M", "1M")  # what died is not the source any more
    copy.copied(source, ids.c1, shared=True)
    same(source.folder / ids.v2, copy.folder / ids.c1)
    assert copy.files() == [ids.c1, f"{ids.c1}.lease", f"{ids.c1}.meta"]


@pytest.mark.parametrize("point", COPY_POINTS[:-1])
def test_a_copy_that_died_can_be_deleted(source, copy, ids, die_at, point):
    before = content(source.folder)
    die_at(point, "copy_volume", **copy.asked(source, ids.c1))
    copy.delete()
    assert not copy.folder.exists()
    assert content(source.folder) == before


def test_a_source_that_a_vm_writes_to_is_not_copied(source, copy, ids, open_in_qemu):
    open_in_qemu(source.folder / ids.v2)
    with pytest.raises(errors.VolumeInUse, match="writes to it"):
        copy.copied(source, ids.c1)
    assert copy.files() == []


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_while_a_disk_is_read_nobody_can_write_to_it(tmp_path, format):
    path = tmp_path / "disk"
    run("qemu-img", "create", "-q", "-f", format, str(path), "4M")
    with files.read_lock(str(path), "v"):
        run("qemu-img", "convert", "-f", format, "-O", "qcow2", str(path), str(tmp_path / "copy"))
        tried = subprocess.run(
            ["qemu-io", "-f", format, "-c", "write 0 64k", str(path)], capture_output=True, text=True, check=False
        )
        assert "lock" in tried.stderr
        with pytest.raises(errors.VolumeInUse), files.qemu_lock(str(path), "v"):
            pass
    run("qemu-io", "-f", format, "-c", "write 0 64k", str(path))


def test_a_broken_source_is_refused_before_anything_is_made(source, copy, ids):
    os.unlink(source.folder / ids.v1)
    with pytest.raises(errors.ChainBroken):
        copy.copied(source, ids.c1)
    assert not copy.folder.exists()


def test_a_copy_that_does_not_fit_is_refused_and_leaves_nothing(storage, small_domain, source, ids):
    storage.create_domain(small_domain, "small", ids.center)
    write(source.folder / ids.v2, 0x44, "4M", "8M")
    there = Copy(storage, small_domain, ids.copy, ids)
    with pytest.raises(errors.NoSpace, match="copying needs"):
        there.copied(source, ids.c1)
    assert not there.folder.exists()


def test_a_foreign_file_with_the_name_of_the_copy_stays(source, copy, ids):
    copy.folder.mkdir()
    (copy.folder / ids.c1).write_bytes(b"mine")
    with pytest.raises(errors.AlreadyExists, match="path"):
        copy.copied(source, ids.c1)
    assert (copy.folder / ids.c1).read_bytes() == b"mine"


def slow(source: Disk, ids) -> None:
    """Make it large enough that a copy of it is still under way when something happens to it."""
    write(source.folder / ids.v2, 0x55, "0", "64M")
    for number in range(1, 12):
        source.storage.create_volume(
            source.domain, source.image, getattr(ids, f"s{number}"), source.leaf, (64 + 96 * number) * MiB
        )
        write(source.folder / getattr(ids, f"s{number}"), number, f"{64 + 96 * (number - 1)}M", "96M")


def test_a_copy_is_stopped_and_told_how_far_it_is(source, copy, ids, storage):
    slow(source, ids)
    ended: list[BaseException] = []
    stopped = threading.Event()

    def run_it() -> None:
        try:
            storage.copy_volume(**copy.asked(source, ids.c1), stopped=stopped)
        except errors.Problem as problem:
            ended.append(problem)

    running = threading.Thread(target=run_it)
    running.start()
    limit = time.monotonic() + 60
    while not (seen := storage.look_copy(copy.domain, copy.image, ids.c1))["copied"]:
        assert time.monotonic() < limit
    assert seen["done"] is False
    storage.stop_copy(copy.domain, copy.image, stopped)
    running.join(60)
    assert [type(one) for one in ended] == [errors.StorageFailed]
    copy.delete()
    assert not copy.folder.exists()


def test_a_copy_ends_with_its_agent(source, copy, ids, tmp_path):
    slow(source, ids)
    script = (
        "import sys, json\nfrom services.hostagent.storage import Storage\n"
        "Storage(60).copy_volume(**json.loads(sys.argv[1]))"
    )
    agent = subprocess.Popen([sys.executable, "-c", script, json.dumps(copy.asked(source, ids.c1))])
    new = copy.folder / f"{ids.c1}.new"
    limit = time.monotonic() + 60
    while not new.exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    copy.copied(source, ids.c1)  # waits for the lock of the one that dies, no longer
    same(source.folder / ids.s11, copy.folder / ids.c1)


# -- thin disks -------------------------------------------------------------------------------------------


def test_a_thin_disk_stands_on_hard_links_of_the_template(template, thin, ids):
    assert thin.files() == sorted(
        f"{volume}{part}" for volume in (ids.base, ids.t1) for part in ("", ".lease", ".meta")
    )
    for part in ("", ".lease", ".meta"):
        assert os.path.samefile(template.folder / f"{ids.base}{part}", thin.folder / f"{ids.base}{part}")
    seen = qemu_chain(thin.folder / ids.t1)
    assert [node.get("backing-filename") for node in seen] == [ids.base, None]  # the bare name
    view = thin.view()
    assert (view["leaf"], view["problem"]) == (ids.t1, None)
    by_id = {v["volume_id"]: v for v in view["volumes"]}
    assert (by_id[ids.t1]["parent_id"], by_id[ids.t1]["backing_id"]) == (ids.base, ids.base)
    assert by_id[ids.base]["template_disk_id"] == template.image
    assert "LEGALITY=LEGAL\n" in (thin.folder / f"{ids.base}.meta").read_text()


@pytest.mark.parametrize("point", THIN_POINTS)
def test_a_thin_disk_that_died_anywhere_is_finished(template, copy, ids, die_at, point):
    thin, before = copy, content(template.folder)
    die_at(point, "create_thin", **thin.asked_thin(template, ids.base, ids.t1))
    if point != "volume.create.after_meta":
        assert thin.leaf is None  # above all not the template's volume
    thin.thin(template, ids.base, ids.t1)
    assert (thin.leaf, len(thin.files())) == (ids.t1, 6)
    assert content(template.folder) == before


@pytest.mark.parametrize("point", THIN_POINTS)
def test_a_thin_disk_that_died_anywhere_is_deleted_without_harm(template, copy, ids, die_at, point):
    thin, before = copy, content(template.folder)
    die_at(point, "create_thin", **thin.asked_thin(template, ids.base, ids.t1))
    thin.delete()
    assert not thin.folder.exists()
    assert content(template.folder) == before
    assert os.stat(template.folder / ids.base).st_nlink == 1


def test_only_a_templates_volume_carries_thin_disks(source, copy, ids):
    with pytest.raises(errors.ChainDiffers, match="no template's"):
        copy.thin(source, ids.v1, ids.t1)
    with pytest.raises(errors.NotFound):
        copy.thin(source, ids.nothing, ids.t1)
    assert not copy.folder.exists()


def test_a_second_thin_volume_is_refused_and_the_first_one_keeps_its_links(template, thin, ids):
    before = content(thin.folder)
    with pytest.raises(errors.ChainDiffers, match="volumes already"):
        thin.thin(template, ids.base, ids.t2)
    assert content(thin.folder) == before


def test_a_thin_disk_for_which_there_is_no_room_leaves_nothing(storage, small_domain, ids):
    storage.create_domain(small_domain, "small", ids.center)
    origin = Disk(storage, small_domain, ids.disk, ids)
    origin.chain("v1")
    template = Copy(storage, small_domain, ids.template, ids)
    template.copied(origin, ids.base, shared=True)
    with open(Path(small_domain["path"], "filler"), "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(b"x" * 4096):
            pass
    thin = Copy(storage, small_domain, ids.thin, ids)
    with pytest.raises(errors.NoSpace):
        thin.thin(template, ids.base, ids.t1)
    assert not thin.folder.exists()
    assert os.stat(template.folder / ids.base).st_nlink == 1


# -- what must never happen to a template's volume --------------------------------------------------------


def test_deleting_a_thin_disk_keeps_the_templates_data(template, thin, copy, ids, open_in_qemu):
    before, other = content(template.folder), copy
    other.thin(template, ids.base, ids.t2)
    open_in_qemu(other.folder / ids.t2)  # another VM runs on the same template
    thin.delete()
    assert not thin.folder.exists()
    assert content(template.folder) == before
    assert os.stat(template.folder / ids.base).st_nlink == 2


def test_a_template_with_thin_disks_is_not_deleted(template, thin, ids):
    with pytest.raises(errors.VolumeInUse, match=f"volume {ids.base} of disk {thin.image}"):
        template.delete()
    assert (template.leaf, thin.leaf) == (ids.base, ids.t1)
    thin.delete()
    template.delete()
    assert not template.folder.exists()


def test_a_template_lets_no_volume_be_put_on_it_in_its_own_disk(storage, domain, template, ids):
    with pytest.raises(errors.TemplateVolume, match=template.image):
        storage.create_volume(domain, template.image, ids.child, ids.base, 64 * MiB)
    assert len(template.files()) == 3


def test_a_templates_volume_is_never_marked_nor_discarded(template, thin, ids):
    for disk in (template, thin):
        with pytest.raises(errors.TemplateVolume):
            disk.mark(ids.base, "illegal")
        with pytest.raises(errors.TemplateVolume):
            disk.storage.prepare_mark(disk.domain, disk.image, ids.base, "illegal")
        with pytest.raises(errors.VolumeInUse):
            disk.discard(ids.base)
    assert template.facts(ids.base)["legality"] == "legal"


def test_snapshots_above_the_template_merge_as_always(storage, domain, template, thin, ids):
    before = content(template.folder)
    storage.create_volume(domain, thin.image, ids.t2, ids.t1, 64 * MiB)
    write(thin.folder / ids.t2, 0x66, "4M", "1M")
    found = thin.storage.referrers(domain, thin.image, [ids.t1])
    assert all(ids.t2 in one for one in found[ids.t1]), found
    thin.commit(ids.t2)
    thin.mark(ids.t2, "illegal")
    storage.record_merge(domain, thin.image, ids.t1, ids.t2, None)
    thin.discard(ids.t2)
    assert (thin.leaf, thin.facts(ids.t1)["parent_id"]) == (ids.t1, ids.base)
    assert content(template.folder) == before


def test_a_template_is_copied_from_while_thin_vms_run_on_it(template, thin, copy, ids, open_in_qemu):
    open_in_qemu(thin.folder / ids.t1)
    copy.copied(template, ids.c1)
    same(template.folder / ids.base, copy.folder / ids.c1)


def test_a_template_is_made_from_a_thin_disk(thin, template, copy, ids):
    write(thin.folder / ids.t1, 0x77, "5M", "1M")
    copy.copied(thin, ids.c1, shared=True)
    same(thin.folder / ids.t1, copy.folder / ids.c1)
    assert [node.get("backing-filename") for node in qemu_chain(copy.folder / ids.c1)] == [None]
