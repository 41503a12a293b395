"""Backing file names: what libvirt makes of them, and how they are made bare before it reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.hostagent import naming
from services.hostagent.chain import Volume
from tests.unit.hostagent.storage.room import run


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["v2", "v1"], "v1"),
        (["v4", "v3", "v2", "v1"], "v1"),
        (["../img/v2", "../img/v1"], "../img/../img/v1"),
        (["../img/v3", "../img/v2", "../img/v1"], "../img/../img/../img/v1"),
        (["../img/v2", "v1"], "../img/v1"),
        (["v2", "/abs/v1"], "/abs/v1"),
        ([], ""),
    ],
)
def test_the_name_that_libvirt_writes_grows_with_folders_only(names, written):
    assert naming.written(names) == written


@given(st.lists(st.from_regex(r"(\.\./[a-z]{1,8}/)?[a-z0-9]{1,12}", fullmatch=True), max_size=30))
def test_bare_names_stay_bare_and_no_name_is_lost(names):
    written = naming.written(names)
    assert written.count("/") == sum(n.count("/") for n in names)
    assert not names or written.endswith(names[-1])


# -- made bare --------------------------------------------------------------------------------------------

MIB = 2**20


def named(disk, volume, name, kind="qcow2"):
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", name, "-F", kind, volume, cwd=disk.folder)


def names(disk):
    """What the headers say, upper volumes first."""
    rows = disk.view()["volumes"]
    return {row["volume_id"]: row["backing"] for row in rows if row["backing"]}


def make_bare(disk):
    return disk.storage.make_bare(disk.domain, disk.image)


@pytest.fixture
def long(disk):
    """v1 <- v2 <- v3 <- v4: a relative name, an absolute one, a bare one."""
    v1, v2, v3, v4 = disk.chain("v1", "v2", "v3", "v4")
    run("qemu-io", "-c", "write -P 7 0 1M", str(disk.folder / v1))
    named(disk, v2, f"../{disk.image}/" * 8 + v1)
    named(disk, v3, str(disk.folder / v2))
    return v1, v2, v3, v4


def test_names_of_the_own_folder_are_made_bare_and_name_the_same(disk, long):
    v1, v2, v3, v4 = long
    assert sorted(make_bare(disk)["bare"]) == sorted([v2, v3])
    assert names(disk) == {v2: v1, v3: v2, v4: v3}
    assert make_bare(disk) == {"bare": [], "kept": {}}
    run("qemu-io", "-r", "-c", "read -P 7 0 1M", str(disk.folder / v4))


def test_one_that_died_in_it_is_finished_by_the_next(disk, long, die_at):
    v1, v2, v3, v4 = long
    die_at("volume.bare.after_header", "make_bare", domain=disk.domain, image=disk.image)
    assert len(make_bare(disk)["bare"]) == 1
    assert names(disk) == {v2: v1, v3: v2, v4: v3}


def test_a_raw_volume_below_stays_raw(disk):
    v1, v2 = disk.ids.v1, disk.ids.v2
    for volume, parent, kind in ((v1, None, "raw"), (v2, v1, "cow")):
        disk.storage.create_volume(disk.domain, disk.image, volume, parent, 64 * MIB, kind)
    named(disk, v2, f"../{disk.image}/{v1}", "raw")
    assert make_bare(disk)["bare"] == [v2]
    assert "backing file format: raw" in run("qemu-img", "info", str(disk.folder / v2))


def test_the_name_of_a_volume_that_somebody_has_open_stays_and_the_others_do_not(disk, long, open_in_qemu):
    v1, v2, v3, _ = long
    open_in_qemu(disk.folder / v2)
    done = make_bare(disk)
    assert (done["bare"], list(done["kept"])) == ([v3], [v2])
    assert "has its file open" in done["kept"][v2]
    assert names(disk)[v2] == f"../{disk.image}/" * 8 + v1


def test_a_name_over_a_volume_that_cannot_be_read_stays(disk, long):
    v1, v2, v3, _ = long
    (disk.folder / f"{v1}.meta").write_text("nothing")
    assert make_bare(disk)["bare"] == [v3]
    assert names(disk)[v2] == f"../{disk.image}/" * 8 + v1


def test_a_header_that_says_another_format_than_the_metadata_stays_as_it_is(disk, long):
    _, v2, v3, _ = long
    named(disk, v3, str(disk.folder / v2), "raw")
    done = make_bare(disk)
    assert (done["bare"], list(done["kept"])) == ([v2], [v3])
    assert "is raw, the metadata say qcow2" in done["kept"][v3]


@pytest.mark.parametrize("change", [{"legality": "illegal"}, {"volume_type": "shared"}, {"elsewhere": True}])
def test_what_is_not_this_disks_own_is_left_alone(change):
    own = Volume("b", parent="a", backing="a", backing_name="../i/a")
    assert naming.grown([own, Volume("a")]) == {"b": "a"}
    assert naming.grown([replace(own, **change), Volume("a")]) == {}
