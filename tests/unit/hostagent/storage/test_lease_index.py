"""The index of user leases as bytes and as a file, and what is refused of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from services.hostagent import layout, lease_index

SPACE = "275766cb-c7d8-43d6-a663-4e52160de620"
VM = "aaaaaaaa-0000-4000-8000-000000000001"
EMPTY = layout.empty_lease_index(SPACE, 1_764_000_000)


def with_vm(number: int, name: str = VM, data: bytes = EMPTY) -> bytes:
    start, block = lease_index.with_record(data, number, name)
    return data[:start] + block + data[start + len(block) :]


@given(some.integers(0, layout.LEASE_RECORDS - 1))
def test_a_record_is_found_at_the_offset_of_its_slot_and_nothing_else_changes(number: int) -> None:
    data = with_vm(number)
    assert lease_index.parse(data, SPACE).find(VM) == (3 + number) * 2**20
    assert with_vm(number, "", data) == EMPTY
    assert number not in set(lease_index.parse(data, SPACE).free())


def test_a_records_bytes_are_the_familys() -> None:
    assert lease_index.record(VM, 2) == VM.encode().ljust(48, b"\0") + b"\0" + b"00005242880" + b"\0--\n"
    assert lease_index.record("", 2) == bytes(49) + b"00000000000" + b"\0--\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it has 0 bytes"),
        (bytes(len(EMPTY)), "magic or version"),
        (layout.empty_lease_index("another", 0), "belongs to the lockspace"),
        (EMPTY[:70] + b"u" + EMPTY[71:], "being rebuilt"),
        (EMPTY[:512] + bytes(512) + EMPTY[1024:], "record 0 has no end"),
        (EMPTY[:-4096] + bytes(4096), "record 3896 has no end"),
    ],
)
def test_what_is_no_index_of_this_lockspace_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(lease_index.Unreadable, match=says):
        lease_index.parse(data, SPACE)


def test_a_record_with_another_slots_offset_is_refused() -> None:
    wrong = with_vm(1).replace(b"00004194304", b"00003145728")
    with pytest.raises(lease_index.Unreadable, match="names the offset 3145728, not 4194304"):
        lease_index.parse(wrong, SPACE).find(VM)


def test_a_file_is_read_and_written_past_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "xleases"
    path.write_bytes(bytes(2**20) + EMPTY.ljust(2**20, b"\0") + bytes(2**20))
    index = lease_index.read(str(path), SPACE)
    lease_index.put(str(path), index, 70, VM)
    assert lease_index.read(str(path), SPACE).find(VM) == 73 * 2**20
    assert path.read_bytes()[2**20 : 2**20 + len(EMPTY)] == with_vm(70)
