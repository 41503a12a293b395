from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import errors
from services.hostagent import qcow2


def header(
    *,
    version: int = 3,
    backing: bytes = b"",
    offset: int | None = None,
    length: int | None = None,
    bits: int = 16,
    size: int = 2**30,
    features: int = 0,
    header_length: int = 104,
    extensions: bytes = b"",
    total: int = 65536,
) -> bytes:
    """A qcow2 header as the specification lays it out."""
    body = extensions + struct.pack(">II", 0, 0)
    start = 104 if version == 3 else 72
    at = offset if offset is not None else (start + len(body) if backing else 0)
    long = len(backing) if length is None else length
    data = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, at, long, bits, size, 0, 0, 0, 0, 0, 0, 0)
    if version == 3:
        data += struct.pack(">QQQII", features, 0, 0, 4, header_length)
    return (data + body + backing).ljust(total, b"\0")


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


RAW_FORMAT = extension(0xE2792ACA, b"raw")


def parse(head: bytes) -> qcow2.Header | None:
    return qcow2.parse(head, "/d/v", "disk")


def test_a_file_without_the_magic_is_raw():
    assert parse(b"") is None
    assert parse(b"\0" * 512) is None


def test_name_format_and_size_are_read():
    found = parse(header(backing=b"base", extensions=RAW_FORMAT))
    assert found == qcow2.Header(3, 2**30, 65536, backing="base", backing_format="raw")


@pytest.mark.parametrize(("version", "size"), [(2, 0), (3, 2**63 - 512)])
def test_both_versions_are_read(version, size):
    found = parse(header(version=version, size=size, backing=b"b"))
    assert (found.version, found.virtual_size, found.backing) == (version, size, "b")


def test_marks_and_a_data_file_are_told():
    found = parse(header(features=7, extensions=extension(0x44415441, b"data.raw")))
    assert (found.dirty, found.corrupt, found.data_file) == (True, True, "data.raw")
    assert parse(header(features=4)).data_file == "?"


def test_the_name_ends_at_a_nul_as_it_does_for_qemu():
    assert parse(header(backing=b"base\0../../etc/shadow")).backing == "base"


def test_a_name_that_is_no_utf8_survives():
    name = parse(header(backing=b"b\xff\n")).backing
    assert name.encode(errors="surrogateescape") == b"b\xff\n"
    assert qcow2.shown(name) == "b\\udcff\\x0a"


def test_the_old_qcow_format_tells_its_backing_file():
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", 1, 48, 4, 0, 1024) + b"\0" * 16 + b"base"
    assert parse(head).backing == "base"


HOSTILE = {
    "version": (header(version=4), "the version (byte 4): 4 is unknown"),
    "only a magic": (b"QFI\xfb", "the file ends after 4 bytes"),
    "cut in the old part": (header()[:40], "the header: it ends after 40 bytes"),
    "cut in the new part": (header()[:90], "the header: it ends after 90 bytes"),
    "cut extensions": (header()[:104], "the file ends after 104 bytes"),
    "tiny clusters": (header(bits=8), "2^8 is not between"),
    "huge clusters": (header(bits=2**32 - 1), "is not between 2^9 and 2^21"),
    "huge size": (header(size=2**64 - 1), "too large"),
    "unknown feature": (header(features=1 << 40), "bits that are unknown"),
    "short header length": (header(header_length=8), "the header length (byte 100)"),
    "long header length": (header(header_length=2**31), "the header length (byte 100)"),
    "name outside": (header(backing=b"b", offset=2**40), "outside the first cluster"),
    "name too long": (header(backing=b"b" * 1024), "too long"),
    "name over the cluster's end": (header(backing=b"b", offset=65530, length=100), "too long"),
    "name behind the end": (header(backing=b"b", offset=60000, length=100, total=600), "behind the end"),
    "extension cut off": (header(extensions=struct.pack(">II", 5, 2**32 - 1)), "it is cut off"),
    "long backing format": (header(extensions=extension(0xE2792ACA, b"r" * 16)), "the backing format"),
    "extensions without end": (header(extensions=extension(5, b"") * 1001), "more than 1000"),
    "old format, huge": (struct.pack(">4sIQIIQ", b"QFI\xfb", 1, 0, 0, 0, 2**64 - 1), "too large"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_with_file_place_and_reason(case):
    head, says = HOSTILE[case]
    with pytest.raises(errors.ChainBroken) as caught:
        parse(head)
    assert "/d/v: " in str(caught.value)
    assert says in str(caught.value)


@given(st.binary(max_size=3000))
def test_any_bytes_behind_the_magic_are_a_header_or_a_declared_problem(data):
    with contextlib.suppress(errors.ChainBroken):
        parse(qcow2.MAGIC + data)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 700),
)
@settings(max_examples=300)
def test_a_damaged_header_is_a_header_or_a_declared_problem(damage, cut):
    head = bytearray(header(backing=b"base" * 20, extensions=RAW_FORMAT + extension(9, b"x" * 50), total=700))
    for place, value in damage:
        head[place] = value
    with contextlib.suppress(errors.ChainBroken):
        found = parse(bytes(head[:cut] if cut > 100 else head))
        assert found is None or len(found.backing or "") <= qcow2.MAX_NAME


def test_the_worst_header_is_refused_within_a_second_and_64_mib():
    head = header(bits=21, extensions=extension(5, b"") * 200_000, total=2**21)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(errors.ChainBroken):
        parse(head)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 1
    assert peak < 64 * 2**20


def test_only_as_much_as_the_first_cluster_is_wanted():
    assert qcow2.span(header(bits=16)) == 65536
    assert qcow2.span(header(bits=21)) == 2**21
    assert qcow2.span(header(bits=60)) == qcow2.FIRST_BYTES
    assert qcow2.span(b"\0" * 4096) == 0
    assert qcow2.span(b"QFI\xfb") == 0


@pytest.mark.parametrize(
    ("name", "local", "mentioned"),
    [
        ("base", "base", {"base"}),
        ("../img/base", "../img/base", {"../img/base"}),
        ("./a:b", "./a:b", {"./a:b"}),
        ("file:base", "base", {"base"}),
        ("nbd://host/export", None, {"//host/export"}),
        ("nbd:unix:/sock", None, {"/sock"}),
        ("blkdebug:rules:base", None, {"base"}),
        ("json:{nonsense", None, set()),
        ("json:" + "[" * 1000, None, set()),
        ('json:{"file.filename":"base"}', None, {"base"}),
        ("json:{'file.filename':'base'}", None, {"file.filename", "base"}),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"base"}}', None, {"base", "qcow2", "file"}),
        ('json:{"children":[{"file":"json:{}"},{"file":"file:b"},{"x":"json:[\\"c\\"]"}],"n":1}', None, {"b", "c"}),
        ('json:{"a":"json:{\\"a\\":\\"fat:rw:d\\"}","b":["\\u0000"]}', None, {"d", "\0"}),
    ],
)
def test_names_are_taken_apart_as_qemu_does(name, local, mentioned):
    assert qcow2.local_file(name) == local
    assert set(qcow2.mentioned_files(name)) == mentioned
