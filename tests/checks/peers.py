"""docs/peers.md has a row for each complaint, each row names a test of that number, and every test it names exists."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = Path("docs/peers.md")
COMPLAINTS = 16
_ROW = re.compile(r"^\| (\d+) \|.*\| ([^|]*) \|$", re.MULTILINE)


def tests() -> set[str]:
    """Names of all test functions."""
    return {
        node.name
        for path in Path("tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def faults(page: str, known: set[str]) -> Iterator[str]:
    rows = {int(number): named.split(", ") for number, named in _ROW.findall(page)}
    for number in range(1, COMPLAINTS + 1):
        if not any(name.startswith(f"test_peer_{number:02d}_") for name in rows.get(number, [])):
            yield f"{PAGE}: row {number} names no test_peer_{number:02d}_…"
    named = {name for row in rows.values() for name in row}
    yield from (f"{PAGE}: there is no test {name}" for name in sorted(named - known))
    left = {name for name in known if name.startswith("test_peer_")} - named
    yield from (f"{PAGE}: no row names {name}" for name in sorted(left))


def main() -> int:
    found = list(faults(PAGE.read_text(), tests()))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
