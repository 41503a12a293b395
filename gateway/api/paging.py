"""The Link header of a list that goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode


def link(path: str, query: Iterable[tuple[str, str]], reply: dict[str, Any]) -> str | None:
    """The next page's address with the same filters, or None at the end (RFC 8288)."""
    cursor = reply.get("next")
    if not cursor:
        return None
    kept = [(name, value) for name, value in query if name != "after"]
    return f'<{path}?{urlencode([*kept, ("after", cursor)])}>; rel="next"'
