"""Sizes, rates and ages as people write and read them. 1 KiB = 1024 bytes; K, KB and KiB mean the same."""

from __future__ import annotations

import datetime
import re

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}
_AGE = re.compile(r"([0-9]{1,5})([hdw])\Z")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:I?B)?\Z", re.IGNORECASE)


def size(text: str) -> int:
    """Bytes of '4GiB', '512M', '1.5T' or '1048576'. Raises ValueError."""
    found = _SIZE.match(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a size like 4GiB or 512M")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def age(text: str) -> datetime.timedelta:
    """Of '12h', '30d' or '8w'. Raises ValueError."""
    found = _AGE.match(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not an age like 12h, 30d or 8w")
    return datetime.timedelta(hours=int(found[1]) * _HOURS[found[2]])


def human(value: int | float | None) -> str:
    """'4.0 GiB'; '-' when it is not known."""
    if value is None:
        return "-"
    number = float(value)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} PiB"


def rate(value: int | float) -> str:
    return f"{human(value)}/s"
