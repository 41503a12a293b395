"""A pull is recorded only when the tables of what stays hold all that goes; without a record it is undone."""

from __future__ import annotations

import random

import pytest

from contracts import errors
from services.hostagent import held
from tests.unit.hostagent.storage.room import run

MIB = 2**20


def written(disk, volume, at="0", size="1M", pattern=7):
    run("qemu-io", "-c", f"write -P {pattern} {at} {size}", str(disk.folder / volume))


def stood_on(disk, volume, ground):
    """What QEMU writes at the end of a pull: another header, and not the tables."""
    name = ("-b", ground, "-F", "qcow2") if ground else ("-b", "")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", *name, str(disk.folder / volume))


def pulled(disk, volume, ground):
    """The whole of a pull."""
    name = ("-b", ground, "-F", "qcow2") if ground else ("-b", "")
    run("qemu-img", "rebase", "-f", "qcow2", *name, str(disk.folder / volume))


def record(disk, base, top, ground, between=(), concluded=True):  # noqa: PLR0917 - a pull has as many ends
    disk.storage.record_pull(disk.domain, disk.image, base, top, ground, between=between, concluded=concluded)


@pytest.mark.parametrize("below", [True, False])
def test_a_pull_is_recorded_when_top_holds_all(disk, below):
    v1, v2, v3, v4 = disk.chain("v1", "v2", "v3", "v4")
    for at, volume in enumerate((v1, v2, v3)):
        written(disk, volume, f"{at}M", pattern=at + 1)
    base, between, ground = (v2, [v3], v1) if below else (v1, [v3, v2], None)
    pulled(disk, v4, ground)
    record(disk, base, v4, ground, between)
    assert disk.facts(v4)["parent_id"] == disk.facts(v4)["backing_id"] == ground
    assert {disk.facts(one)["legality"] for one in (base, *between)} == {"illegal"}
    assert disk.storage.volumes(disk.domain, disk.image)["leaf"] == v4
    record(disk, base, v4, ground, between, concluded=False)  # again
    disk.storage.discard(disk.domain, disk.image, v3, [*between[1:], base])
    for at in range(3):
        run("qemu-io", "-r", "-c", f"read -P {at + 1} {at}M 1M", str(disk.folder / v4))


@pytest.mark.parametrize("below", [True, False])
def test_a_header_alone_is_no_pull(disk, below):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    base, ground = (v2, v1) if below else (v1, None)
    written(disk, base)
    stood_on(disk, v3, ground)
    with pytest.raises(errors.StorageFailed, match=f"bytes 0 to {MIB}, which .*{base} holds"):
        record(disk, base, v3, ground, [] if below else [v2])
    with pytest.raises(errors.JobFailed, match="not recorded"):
        record(disk, base, v3, ground, concluded=False)
    assert {disk.facts(one)["legality"] for one in (v1, v2, v3)} == {"legal"}
    assert disk.storage.put_back(disk.domain, disk.image) == {v3: v2}
    run("qemu-io", "-r", "-c", "read -P 7 0 1M", str(disk.folder / v3))
    with pytest.raises(errors.ChainDiffers, match="the pull is not done"):
        record(disk, base, v3, ground)


@pytest.mark.parametrize("point", ["volume.pull.after_mark", "volume.pull.after_top"])
def test_a_record_that_died_is_finished_without_a_qemu(disk, die_at, point):
    v1, v2, v3, v4 = disk.chain("v1", "v2", "v3", "v4")
    pulled(disk, v4, v1)
    ends = {"base": v2, "top": v4, "ground": v1, "between": [v3], "concluded": True}
    die_at(point, "record_pull", domain=disk.domain, image=disk.image, **ends)
    assert disk.storage.volumes(disk.domain, disk.image)["leaf"] == v4  # at any moment
    assert disk.storage.put_back(disk.domain, disk.image) == {}
    record(disk, v2, v4, v1, [v3], concluded=False)
    assert disk.facts(v4)["parent_id"] == v1
    assert {disk.facts(one)["legality"] for one in (v2, v3)} == {"illegal"}


@pytest.mark.parametrize("inner", [False, True], ids=["below the leaf", "further down"])
@pytest.mark.parametrize("into", ["above", "below", "both"])
def test_a_repair_takes_no_header_for_a_merge_either(disk, inner, into):
    """Somebody merged or pulled by hand, and QEMU lives: its chain is the truth, but what went is dropped only with the
    proof that what it held went up or down."""
    v1, v2, v3, *more = disk.chain("v1", "v2", "v3", *(["v4"] if inner else []))
    chain = [*more, v3, v1]
    written(disk, v2, size="2M")
    written(disk, v1, at="8M", size="4M")
    stood_on(disk, v3, v1)
    with pytest.raises(errors.StorageFailed, match=f"bytes 0 to {2 * MIB}, which .*{v2} holds, .*puts the volume back"):
        disk.storage.record_chain(disk.domain, disk.image, chain, [v2], True)
    assert disk.facts(v2)["legality"] == "legal"
    if into in {"above", "both"}:
        written(disk, v3, size="1M")
    if into in {"below", "both"}:
        written(disk, v1, at="1M", size="1M")
    if into != "both":
        with pytest.raises(errors.StorageFailed, match="is not whole"):
            disk.storage.record_chain(disk.domain, disk.image, chain, [v2], True)
        written(disk, v3 if into == "above" else v1, size="2M")
    disk.storage.record_chain(disk.domain, disk.image, chain, [v2], True)
    assert (disk.facts(v2)["legality"], disk.facts(v3)["parent_id"]) == ("illegal", v1)


def test_a_repair_takes_a_raw_file_for_no_proof(disk):
    """Where QEMU wrote into a raw file nothing tells what of it came from where."""
    v1, v2, v3 = disk.ids.v1, disk.ids.v2, disk.ids.v3
    for volume, parent, kind in ((v1, None, "raw"), (v2, v1, "cow"), (v3, v2, "cow")):
        disk.storage.create_volume(disk.domain, disk.image, volume, parent, 64 * MIB, kind)
    written(disk, v2)
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", v1, "-F", "raw", str(disk.folder / v3))
    with pytest.raises(errors.StorageFailed, match="nothing below it can prove"):
        disk.storage.record_chain(disk.domain, disk.image, [v3, v1], [v2], True)
    written(disk, v3)
    disk.storage.record_chain(disk.domain, disk.image, [v3, v1], [v2], True)
    assert disk.facts(v2)["legality"] == "illegal"


def test_a_repair_that_is_refused_has_marked_what_stands_above_the_leaf(disk):
    """The marks named v5, which QEMU left by a pivot: whatever becomes of v3, a start must not take that one."""
    v1, v2, v3, v4, v5 = disk.chain("v1", "v2", "v3", "v4", "v5")
    written(disk, v3)
    stood_on(disk, v4, v2)
    with pytest.raises(errors.StorageFailed, match="Power the VM off and start it"):
        disk.storage.record_chain(disk.domain, disk.image, [v4, v2, v1], [v3, v5], True)
    assert {disk.facts(one)["legality"] for one in (v1, v2, v3, v4)} == {"legal"}
    assert (disk.facts(v5)["legality"], disk.leaf) == ("illegal", v4)
    assert disk.storage.put_back(disk.domain, disk.image) == {v4: v3}
    run("qemu-io", "-r", "-c", "read -P 7 0 1M", str(disk.folder / v4))


def test_a_mark_of_a_pull_that_was_begun_is_its_proof(disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    written(disk, v2)
    stood_on(disk, v3, v1)
    disk.mark(v2, "illegal")
    disk.storage.record_chain(disk.domain, disk.image, [v3, v1], [], True)
    assert disk.facts(v3)["parent_id"] == v1


@pytest.mark.parametrize(
    "looks", [b"\0" * 512, b"QFI\xfb" + b"\0\0\0\x03" + b"\0" * 504], ids=["zeros", "a qcow2 file"]
)
def test_a_raw_volume_holds_all_whatever_its_bytes_look_like(disk, looks):
    v1, v2 = disk.ids.v1, disk.ids.v2
    for volume, parent, kind in ((v1, None, "raw"), (v2, v1, "cow")):
        disk.storage.create_volume(disk.domain, disk.image, volume, parent, 64 * MIB, kind)
    with (disk.folder / v1).open("r+b") as file:
        file.write(looks)
    stood_on(disk, v2, None)
    with pytest.raises(errors.StorageFailed, match=f"bytes 0 to {64 * MIB}, which .*{v1} holds"):
        disk.storage.record_chain(disk.domain, disk.image, [v2], [v1], True)
    written(disk, v2, size="64M")
    disk.storage.record_chain(disk.domain, disk.image, [v2], [v1], True)
    assert disk.facts(v1)["legality"] == "illegal"


def test_what_was_not_recorded_is_not_deleted(disk):
    v1, v2, v3 = disk.chain("v1", "v2", "v3")
    stood_on(disk, v3, v1)
    with pytest.raises(errors.VolumeInUse, match="not marked illegal"):
        disk.discard(v2)


# -- the proof --------------------------------------------------------------------------------------------


def qcow2(folder, name, *words, size="64M"):
    run("qemu-img", "create", "-q", "-f", "qcow2", *words, str(folder / name), size)
    return folder / name


def missing(upper, lower):
    return held.missing(str(upper), str(lower), "d")


KINDS = {
    "plain": (),
    "small clusters": ("-o", "cluster_size=4k"),
    "large clusters": ("-o", "cluster_size=2M"),
    "parts of clusters": ("-o", "extended_l2=on,cluster_size=128k"),
    "version 2": ("-o", "compat=0.10"),
}


@pytest.mark.parametrize("lower", KINDS)
@pytest.mark.parametrize("upper", KINDS)
def test_one_file_holds_all_of_another_or_lacks_some_part(tmp_path, upper, lower):
    below, above = qcow2(tmp_path, "b", *KINDS[lower]), qcow2(tmp_path, "a", *KINDS[upper])
    assert missing(above, below) is None
    run("qemu-io", "-c", "write 0 2M", "-c", "write 40M 2M", str(below))
    gap = missing(above, below)
    assert gap is not None
    assert gap[0] == 0
    run("qemu-io", "-c", "write 0 8M", "-c", "write 40M 1M", str(above))
    gap = missing(above, below)
    assert gap is not None or KINDS[upper] == KINDS["large clusters"]
    if gap is not None:
        assert gap[0] == 41 * MIB
    run("qemu-io", "-c", "write 41M 1M", str(above))
    assert missing(above, below) is None


@pytest.mark.parametrize("seed", range(6))
def test_layers_in_pieces_are_compared_piece_by_piece(tmp_path, seed):
    """Beside what qemu-io wrote, over the ends of second-level tables too."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    below, above, ground = (qcow2(tmp_path, name, *KINDS["small clusters"]) for name in "bag")
    step, parts = 4096, 64 * MIB // 4096
    wanted = {at for start in chance.sample(range(parts), 40) for at in range(start, min(parts, start + 700))}
    up = {at for at in wanted if (at // 50 + seed) % 3}
    rest = wanted - up
    for file, clusters in ((below, wanted), (above, up), (ground, rest)):
        writes(file, clusters, step)
    assert held.missing(str(above), str(below), "d", ground=str(ground)) is None
    gap = missing(above, below)
    assert (gap[0] if gap else None) == (min(rest) * step if rest else None)


def writes(file, clusters, step):
    """In runs, so that few words do."""
    runs: list[list[int]] = []
    for at in sorted(clusters):
        if runs and runs[-1][1] == at:
            runs[-1][1] = at + 1
        else:
            runs.append([at, at + 1])
    words = [word for start, stop in runs for word in ("-c", f"write {start * step} {(stop - start) * step}")]
    run("qemu-io", *words, str(file))


def test_zeros_are_held_as_well(tmp_path):
    below, above = qcow2(tmp_path, "b"), qcow2(tmp_path, "a")
    run("qemu-io", "-c", "write -z 1M 1M", str(below))
    assert missing(above, below) == (MIB, 2 * MIB)
    run("qemu-io", "-c", "write -z 0 4M", str(above))
    assert missing(above, below) is None


@pytest.mark.parametrize("backed", [True, False])
def test_what_a_guest_trimmed_is_held_still(tmp_path, backed):
    """Of version 3: with a backing file or without, a trimmed block reads as zeros, and not as what lies below."""
    below = qcow2(tmp_path, "b")
    above = qcow2(tmp_path, "a", *(("-b", str(below), "-F", "qcow2") if backed else ()))
    run("qemu-io", "-c", "write 0 4M", str(below))
    run("qemu-io", "-d", "unmap", "-c", "write 0 4M", "-c", "discard 1M 2M", str(above))
    assert missing(above, below) is None


def test_what_lies_behind_the_end_of_the_upper_one_does_not_count(tmp_path):
    below, above = qcow2(tmp_path, "b", size="2G"), qcow2(tmp_path, "a", size="1G")
    run("qemu-io", "-c", "write 1500M 1M", str(below))
    assert missing(above, below) is None
    assert missing(below, above) is None


def test_a_file_that_is_no_qcow2_proves_nothing(tmp_path):
    raw = tmp_path / "raw"
    raw.write_bytes(b"x" * MIB)
    with pytest.raises(errors.ChainBroken, match="is no qcow2 file"):
        missing(qcow2(tmp_path, "a"), raw)
