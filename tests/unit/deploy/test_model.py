"""The model of acknowledged blocks on hand-made content: it must find what is wrong, and only that."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.guest import model

RING = 64


def stamp(block: int, sequence: int, disk: int = 0) -> bytes:
    """A block as writer.c makes it."""
    head = struct.pack("<8sIIQQQQ12x", b"DRYSTONE", disk, 0, block, sequence, RING, 7)
    return (head + struct.pack("<I", zlib.crc32(head))) * 64


def disk_after(boot: model.Boot, last: int) -> bytearray:
    content = bytearray(RING * model.BLOCK)
    for sequence in range(boot.first, last + 1):
        place = boot.place(sequence)
        content[place * model.BLOCK : (place + 1) * model.BLOCK] = stamp(place, sequence)
    return content


def acks(tmp_path: Path, text: str) -> model.Acks:
    log = tmp_path / "serial"
    log.write_text(text)
    return model.read_log(log)


def boot(order: str = "scattered") -> model.Boot:
    return model.Boot(RING, order, 1, 0)


@given(last=st.integers(1, 5 * RING), ahead=st.integers(0, RING), order=st.sampled_from(["scattered", "sequential"]))
def test_what_was_written_is_right_and_more_than_acknowledged_is_too(last: int, ahead: int, order: str) -> None:
    known = model.Acks({0: model.Disk([model.Boot(RING, order, 1, last)])})
    result = model.check_raw(known, 0, io.BytesIO(disk_after(boot(order), last + ahead)))
    assert result.ok, result.summary()
    assert result.checked == min(last, RING)


@given(last=st.integers(1, 5 * RING), missing=st.integers(1, RING), order=st.sampled_from(["scattered", "sequential"]))
def test_every_acknowledged_write_that_is_missing_is_found(last: int, missing: int, order: str) -> None:
    known = model.Acks({0: model.Disk([model.Boot(RING, order, 1, last)])})
    result = model.check_raw(known, 0, io.BytesIO(disk_after(boot(order), last - missing)))
    assert len(result.lost) == min(missing, last)
    assert not result.ok


@pytest.mark.parametrize("at", [0, 63, 64, 2048, 4095])
def test_one_flipped_byte_is_damage(at: int) -> None:
    content = disk_after(boot(), RING)
    content[9 * model.BLOCK + at] ^= 1
    result = model.check_raw(
        model.Acks({0: model.Disk([model.Boot(RING, "scattered", 1, RING)])}), 0, io.BytesIO(content)
    )
    assert len(result.damaged) == 1
    assert not result.ok


def test_a_block_in_the_wrong_place_or_of_another_disk_is_damage() -> None:
    assert model.judge(stamp(5, 9), 0, 5) == 9
    assert model.judge(stamp(5, 9), 0, 6) is None
    assert model.judge(stamp(5, 9), 1, 5) is None


def test_a_short_file_reads_as_never_written() -> None:
    known = model.Acks({0: model.Disk([model.Boot(RING, "sequential", 1, RING)])})
    result = model.check_raw(known, 0, io.BytesIO(bytes(disk_after(boot("sequential"), RING)[: 10 * model.BLOCK])))
    assert len(result.lost) == RING - 10


def test_nothing_acknowledged_is_not_a_pass() -> None:
    result = model.check_raw(model.Acks(), 0, io.BytesIO(b""))
    assert not result.ok
    assert "nothing to check" in result.summary()


def test_the_log_may_hold_kernel_messages_and_end_in_the_middle(tmp_path: Path) -> None:
    known = acks(tmp_path, "[ 0.1] Linux\n@up 1.2\n\n@begin 0 64 scattered 1\n@a 0 16\n[ 2.0] x\n@a 0 32\n@a 0 4")
    assert known.safe() == 32
    assert known.boots == 1
    assert known.findings() == []


def test_a_guest_that_finds_less_than_it_acknowledged_is_a_loss(tmp_path: Path) -> None:
    known = acks(tmp_path, "@begin 0 64 scattered 1\n@a 0 48\n@begin 0 64 scattered 33\n@a 0 64\n")
    assert known.findings() == ["the guest started again and found disk 0 at sequence 32, acknowledged was 48"]
    assert not model.check_raw(known, 0, io.BytesIO(disk_after(boot(), 64))).ok


def test_writes_between_two_boots_that_nobody_acknowledged_are_not_expected(tmp_path: Path) -> None:
    known = acks(tmp_path, "@begin 0 64 sequential 1\n@a 0 8\n@begin 0 64 sequential 20\n@a 0 24\n")
    assert sorted(known.disks[0].expected().values()) == [*range(1, 9), *range(20, 25)]


def test_what_the_guest_itself_found_counts(tmp_path: Path) -> None:
    known = acks(tmp_path, "@bad 0 17 damaged\n@checked 0 64 1\n@begin 0 64 scattered 1\n@a 0 16\n")
    assert known.findings() == ["the guest saw on disk 0 17 damaged"]


def test_the_longest_stall_is_the_longest_of_all_disks(tmp_path: Path) -> None:
    known = acks(tmp_path, "@begin 0 64 scattered 1\n@w 0 900 1500 10\n@w 1 900 20500 10\n")
    assert known.longest_ms() == 20.5
