"""MAC addresses from a pool. Pure."""

from __future__ import annotations

from collections.abc import Collection

from contracts import errors

_GROUP_BIT = 1 << 40  # the lowest bit of the first byte: an address of many, never a NIC's
_REST = _GROUP_BIT - 1


def to_number(mac: str) -> int:
    return int(mac.replace(":", ""), 16)


def to_text(number: int) -> str:
    digits = f"{number:012x}"
    return ":".join(digits[place : place + 2] for place in range(0, 12, 2))


def check_pool(first: str, last: str) -> None:
    """Refuse a pool that ends before it begins."""
    if to_number(first) > to_number(last):
        raise errors.LimitExceeded(what="The first address of the MAC pool", value=first, limit=last)


def free(first: str, last: str, taken: Collection[str], many: int) -> list[str]:
    """The `many` lowest free addresses of the pool; MacPoolEmpty if it has fewer."""
    used = {to_number(mac) for mac in taken}
    found: list[str] = []
    number, end = to_number(first), to_number(last)
    while len(found) < many:
        if number & _GROUP_BIT:  # a wide pool may cross multicast addresses: go on behind them
            number = (number | _REST) + 1
        if number > end:
            raise errors.MacPoolEmpty(first=first, last=last)
        if number and number not in used:
            found.append(to_text(number))
        number += 1
    return found
