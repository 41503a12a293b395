from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import errors
from services.hostagent import layout

# From the format's own reader tests, with a valid checksum (and an id that has a digit too many).
SAMPLE = b"""ALIGNMENT=1048576
BLOCK_SIZE=512
CLASS=Data
DESCRIPTION=storage domain
IOOPTIMEOUTSEC=10
LEASERETRIES=3
LEASETIMESEC=60
LOCKPOLICY=
LOCKRENEWALINTERVALSEC=5
POOL_UUID=
REMOTE_PATH=server:/path
ROLE=Regular
SDUUID=275766cb-c7d8-43d6-a663-4e52160de620
TYPE=LOCALFS
VERSION=5
_SHA_CKSUM=9336f77705ff9e3d5faf65c4d0dc818a29de458d
"""
IMAGE = "11111111-1111-1111-1111-111111111111"
VOLUME = "22222222-2222-2222-2222-222222222222"
META = b"""CAP=1073741824
CTIME=1700000000
DESCRIPTION={"DiskAlias":"a"}
DISKTYPE=DATA
DOMAIN=275766cb-c7d8-43d6-a663-4e52160de620
FORMAT=COW
GEN=0
IMAGE=11111111-1111-1111-1111-111111111111
LEGALITY=LEGAL
PUUID=00000000-0000-0000-0000-000000000000
SEQ=0
TYPE=SPARSE
VOLTYPE=LEAF
EOF
"""

KEYS = st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True).filter(lambda k: k not in {"_SHA_CKSUM", "NONE"})
VALUES = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=60)


def refused(data: bytes) -> str:
    with pytest.raises(errors.DomainUnusable) as caught:
        layout.read_domain(data, "/d")
    return str(caught.value)


def broken(data: bytes) -> str:
    with pytest.raises(errors.ChainBroken) as caught:
        layout.read_volume(data, "/d/v.meta", IMAGE)
    assert "/d/v.meta" in str(caught.value)
    return str(caught.value)


def test_the_sample_of_the_format_is_read_and_written_byte_for_byte():
    domain = layout.read_domain(SAMPLE, "/d")
    assert (domain.name, domain.version, domain.pools, domain.sealed) == ("storage domain", 5, (), True)
    assert layout.write_domain(domain) == SAMPLE


def test_a_changed_value_breaks_the_seal():
    assert "checksum is wrong" in refused(SAMPLE.replace(b"ROLE=Regular", b"ROLE=Master"))


def test_metadata_without_a_checksum_is_trusted_and_says_so():
    unsealed = SAMPLE[: SAMPLE.index(b"_SHA")]
    assert not layout.read_domain(unsealed, "/d").sealed


def test_trailing_zero_bytes_are_no_part_of_the_metadata():
    assert layout.read_domain(SAMPLE + b"\0" * 100, "/d").sealed


def test_unknown_keys_are_kept():
    values = {**layout.read_domain(SAMPLE, "/d").values, "NEWER_KEY": "a=b"}
    again = layout.read_domain(layout.write_domain(layout.Domain(values)), "/d")
    assert again.values == values


@pytest.mark.parametrize("version", ["0", "2", "3", "4"])
def test_older_versions_are_read(version):
    old = SAMPLE[: SAMPLE.index(b"_SHA")].replace(b"VERSION=5", b"VERSION=" + version.encode())
    assert layout.read_domain(old, "/d").version == int(version)


BAD_METADATA = {
    "empty": (b"", "SDUUID is missing"),
    "nonsense": (b"nonsense", "line 1 is not KEY=VALUE"),
    "a key twice": (b"A=1\nA=2\n", "comes twice"),
    "no UTF-8": (b"A=\xff\n", "byte 2 is not UTF-8"),
    "long": (b"A=1\n" * 40_000, "more than 65536 bytes"),
    "many keys": (b"".join(b"K%d=\n" % i for i in range(2000)), "more than 1000 keys"),
    "a key in lower case": (b"lower=1\n", "not KEY=VALUE"),
    "a newer version": (b"SDUUID=a\nVERSION=6\nCLASS=Data\nTYPE=NFS\n", "known are 0 to 5"),
    "a version that is no number": (b"SDUUID=a\nVERSION=five\nCLASS=Data\nTYPE=NFS\n", "known are 0 to 5"),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_domain_metadata_is_refused_with_the_reason(case):
    data, says = BAD_METADATA[case]
    assert says in refused(data)


@given(st.binary(max_size=2000))
def test_any_bytes_are_domain_metadata_or_a_declared_problem(data):
    with contextlib.suppress(errors.DomainUnusable):
        layout.read_domain(data, "/d")


@given(st.dictionaries(KEYS, VALUES, max_size=20))
def test_whatever_is_written_of_a_domain_is_read_back(extra):
    values = {**extra, "SDUUID": IMAGE, "VERSION": "5", "CLASS": "Data", "TYPE": "NFS"}
    assert layout.read_domain(layout.write_domain(layout.Domain(values)), "/d").values == values


def test_a_line_break_cannot_be_smuggled_into_metadata():
    domain = layout.new_domain(VOLUME, "a\nROLE=Master", IMAGE, "/d")
    with pytest.raises(ValueError, match="line break"):
        layout.write_domain(domain)


def test_a_new_domain_is_attached_to_its_data_center():
    domain = layout.read_domain(layout.write_domain(layout.new_domain(VOLUME, "silo", IMAGE, "/d")), "/d")
    assert (domain.id, domain.name, domain.pools) == (VOLUME, "silo", (IMAGE,))


def test_volume_metadata_is_read_and_written_byte_for_byte():
    volume = layout.read_volume(META, "/d/v.meta", IMAGE)
    assert (volume.capacity, volume.format, volume.legality, volume.volume_type) == (2**30, "cow", "legal", "leaf")
    assert (volume.parent, volume.image, volume.created) == (None, IMAGE, 1_700_000_000)
    assert layout.write_volume(volume) == META


def test_older_volume_metadata_counts_its_size_in_blocks():
    old = META.replace(b"CAP=1073741824", b"SIZE=2097153").replace(b"SEQ=0", b"MTIME=0")
    volume = layout.read_volume(old, "/d/v.meta", IMAGE)
    assert volume.capacity == 2097153 * 512
    assert b"SIZE=3\n" in layout.write_volume(volume.having(capacity=1025))


def test_a_change_keeps_everything_else():
    volume = layout.read_volume(META.replace(b"SEQ=0", b"SEQ=0\nSTRANGE=x"), "/d/v.meta", IMAGE)
    changed = volume.having(legality="illegal", parent=VOLUME, capacity=512, volume_type="internal")
    assert (changed.legality, changed.parent, changed.capacity) == ("illegal", VOLUME, 512)
    assert changed.volume_type == "internal"
    assert changed.values["STRANGE"] == "x"
    assert volume.having() == volume


BAD_VOLUMES = {
    "no end": (b"EOF\n", b"", "EOF is missing"),
    "cleared": (META, b"NONE=" + b"#" * 100 + b"\nEOF\n", "cleared"),
    "unknown format": (b"COW", b"QED", "FORMAT is 'QED'"),
    "no mark": (b"LEGALITY=LEGAL\n", b"", "LEGALITY is missing"),
    "unknown type": (b"VOLTYPE=LEAF", b"VOLTYPE=ROOT", "VOLTYPE is 'ROOT'"),
    "a path as parent": (b"PUUID=0", b"PUUID=../0", "not a UUID"),
    "negative size": (b"CAP=1073741824", b"CAP=-1", "not a number"),
    "too large": (b"CAP=1073741824", b"CAP=9223372036854775808", "not a number"),
    "a very long number": (b"CAP=1073741824", b"CAP=" + b"9" * 5000, "not a number"),
    "no size": (b"CAP=1073741824\n", b"", "SIZE is missing"),
    "long": (b"CAP=", b"A=" + b"x" * 9000 + b"\nCAP=", "more than 8192 bytes"),
}


@pytest.mark.parametrize("case", BAD_VOLUMES)
def test_bad_volume_metadata_is_refused_with_the_reason(case):
    old, new, says = BAD_VOLUMES[case]
    assert says in broken(META.replace(old, new))


@pytest.mark.parametrize("time", [b"soon", b"-1", b"253402300800", b""])
def test_a_creation_time_that_is_none_is_left_out(time):
    volume = layout.read_volume(META.replace(b"CTIME=1700000000", b"CTIME=" + time), "/d/v.meta", IMAGE)
    assert volume.created is None


@given(st.binary(max_size=600))
def test_any_bytes_are_volume_metadata_or_a_declared_problem(data):
    with contextlib.suppress(errors.ChainBroken):
        layout.read_volume(data, "/d/v.meta", IMAGE)


@given(st.integers(0, len(META) - 1), st.binary(min_size=1, max_size=3))
def test_damaged_volume_metadata_is_read_or_a_declared_problem(place, damage):
    data = META[:place] + damage + META[place + len(damage) :]
    with contextlib.suppress(errors.ChainBroken):
        volume = layout.read_volume(data, "/d/v.meta", IMAGE)
        assert 0 <= volume.capacity <= layout.MAX_CAPACITY


@given(st.integers(0, layout.MAX_CAPACITY), st.sampled_from(["cow", "raw"]), st.none() | st.just(VOLUME), VALUES)
def test_whatever_is_written_of_a_volume_is_read_back(capacity, kind, parent, description):
    volume = layout.new_volume(
        domain_id=IMAGE,
        image=IMAGE,
        parent=parent,
        capacity=capacity,
        format=kind,
        description=description,
        created=1,
    )
    try:
        data = layout.write_volume(volume)
    except ValueError:
        assert len(description.encode()) > 100
        return
    assert layout.read_volume(data, "/d/v.meta", IMAGE) == volume


def test_metadata_longer_than_the_format_allows_is_not_written():
    volume = layout.read_volume(META, "/d/v.meta", IMAGE)
    with pytest.raises(ValueError, match="allows 512"):
        layout.write_volume(layout.Volume({**volume.values, "DESCRIPTION": "x" * 300}))


@pytest.mark.parametrize("name", [VOLUME, *(VOLUME + s for s in (".meta", ".lease", ".new", ".meta.new"))])
def test_every_file_of_a_volume_is_known_by_its_name(name):
    assert layout.volume_of(name) == VOLUME
    assert layout.volume_of(layout.REMOVED + name) == VOLUME


@pytest.mark.parametrize("name", ["", "disk.qcow2", VOLUME + ".bak", VOLUME.upper() + "X", VOLUME + "\n"])
def test_other_names_are_no_volumes(name):
    assert layout.volume_of(name) is None


def test_paths_follow_from_mount_point_and_ids():
    place = layout.Place("/mnt/", VOLUME)
    assert place.file(IMAGE, VOLUME) == layout.volume_path("/mnt", VOLUME, IMAGE, VOLUME)
    assert place.image(IMAGE) == f"/mnt/{VOLUME}/images/{IMAGE}"
    assert place.dom_md == f"/mnt/{VOLUME}/dom_md"


def test_the_empty_lease_index_has_the_format_of_its_family():
    index = layout.empty_lease_index(VOLUME, 1_700_000_000)
    magic, version, lockspace, mtime, updating, end = struct.unpack_from(">i x 4s x 48s x 10s x c 440x c", index)
    assert (magic, version, mtime, updating, end) == (0x12152016, b"0001", b"1700000000", b"-", b"\n")
    assert lockspace.rstrip(b"\0").decode() == VOLUME
    assert len(index) == 512 + 3960 * 64
    assert index[512:576] == b"\0" * 49 + b"00000000000" + b"\0--\n"
