from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import errors
from services.inventory import macs

numbers = st.integers(0, 2**48 - 1)


@given(numbers)
def test_text_and_number_are_the_same_address(number: int) -> None:
    assert macs.to_number(macs.to_text(number)) == number


@given(numbers, st.integers(0, 30), st.sets(st.integers(0, 30)), st.integers(0, 10))
def test_drawn_addresses_are_free_unicast_different_and_of_the_pool(
    low: int, width: int, taken: set[int], many: int
) -> None:
    first, last = macs.to_text(low), macs.to_text(min(low + width, 2**48 - 1))
    used = {macs.to_text(min(low + offset, 2**48 - 1)) for offset in taken}
    try:
        drawn = macs.free(first, last, used, many)
    except errors.MacPoolEmpty:
        return
    assert len(drawn) == len(set(drawn)) == many
    assert not used.intersection(drawn)
    for mac in drawn:
        assert first <= mac <= last
        assert int(mac[:2], 16) % 2 == 0
        assert mac != "00:00:00:00:00:00"


def test_a_pool_gives_every_address_and_then_is_empty() -> None:
    pool = ("56:00:00:00:00:fe", "56:00:00:00:01:01")
    assert macs.free(*pool, set(), 4) == [pool[0], "56:00:00:00:00:ff", "56:00:00:00:01:00", pool[1]]
    with pytest.raises(errors.MacPoolEmpty):
        macs.free(*pool, {pool[0]}, 4)


def test_a_wide_pool_goes_on_behind_multicast_addresses() -> None:
    drawn = macs.free("56:ff:ff:ff:ff:ff", "58:00:00:00:00:05", set(), 2)
    assert drawn == ["56:ff:ff:ff:ff:ff", "58:00:00:00:00:00"]


def test_a_pool_that_ends_before_it_begins_is_refused() -> None:
    macs.check_pool("56:00:00:00:00:01", "56:00:00:00:00:01")
    with pytest.raises(errors.LimitExceeded):
        macs.check_pool("56:00:00:00:00:02", "56:00:00:00:00:01")
