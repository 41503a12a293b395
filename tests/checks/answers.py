"""Every error has its row in docs/bad-input.md: what causes it, or why nobody is shown it.

`python -m tests.checks.answers` names the codes without a row, and rows whose code no error has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from contracts import errors

PAGE = Path("docs/bad-input.md")
# What the command says by itself, without an answer of the API.
COMMANDS_OWN = {"ambiguous", "unreachable", "not_drystone", "not_found"}


def kinds(of: type[errors.Problem] = errors.Problem) -> Iterator[type[errors.Problem]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def told(page: str) -> set[str]:
    """All codes that stand alone in a cell of a table, or with a note behind them."""
    cells = (cell.strip() for line in page.splitlines() if line.startswith("| ") for cell in line.split("|"))
    found: set[str] = set()
    for cell in cells:
        if re.match(r"`[a-z_]+`( \(\d+\))?(,|$)", cell):
            found.update(re.findall(r"`([a-z_]+)`", cell))
    return found


def main() -> None:
    codes = {kind.code for kind in kinds()}
    rows = told(PAGE.read_text())
    missing = sorted(codes - rows)
    for code in missing:
        print(f"{PAGE} has no row for {code}")
    unknown = sorted(rows - codes - COMMANDS_OWN)
    for code in unknown:
        print(f"{PAGE} has a row for {code}, which no error has")
    if missing or unknown:
        sys.exit(1)


if __name__ == "__main__":
    main()
