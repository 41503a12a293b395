"""Every error has its row in docs/bad-input.md: what causes it, or why nobody is shown it.

`python -m tests.checks.answers` names the codes without a row, rows whose code no error has, rows with more or fewer
cells than their table, and rows without a test that is there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from contracts import errors

PAGE = Path("docs/bad-input.md")
# What the command says by itself, without an answer of the API.
COMMANDS_OWN = {"ambiguous", "unreachable", "not_drystone", "not_found"}


def kinds(of: type[errors.Problem] = errors.Problem) -> Iterator[type[errors.Problem]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def rows(page: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """The number of each line of a table, the cells of the table's head, and the line's own."""
    head: list[str] = []
    for number, line in enumerate(page.splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().split("|")[1:-1]] if line.startswith("|") else []
        if head and cells and not set("".join(cells)) <= set("-: "):
            yield number, head, cells
        head = (head or cells) if cells else []


def told(page: str) -> set[str]:
    """All codes that stand alone in a cell of a table, or with a note behind them."""
    found: set[str] = set()
    for cell in (cell for _, _, cells in rows(page) for cell in cells):
        if re.match(r"`[a-z_]+`( \(\d+\))?(,|$)", cell):
            found.update(re.findall(r"`([a-z_]+)`", cell))
    return found


def crooked(page: str) -> Iterator[str]:
    """Rows that a reader sees cut off or shifted, because they have other cells than their head."""
    for number, head, cells in rows(page):
        if len(cells) != len(head):
            yield f"line {number} has {len(cells)} cells in a table of {len(head)}: {cells[0]}"


def unproved(page: str, names: Collection[str]) -> Iterator[str]:
    """Rows whose last column names no test, or one that is not there. `names`: of all files and functions of tests."""
    for number, head, cells in rows(page):
        if head[-1] != "test" or len(cells) != len(head):
            continue
        words = re.findall(r"[a-z][a-z0-9_]*_[a-z0-9_]+", cells[-1])
        if not words:
            yield f"line {number} names no test: {cells[0]}"
        yield from (f"line {number} names {word}, which is in no test" for word in words if not _in(word, names))


def _in(word: str, names: Collection[str]) -> bool:
    return any(word in name for name in names)


def tests() -> set[str]:
    """The names of all files and functions of tests."""
    files = list(Path("tests").rglob("*.py"))
    functions = {name for path in files for name in re.findall(r"def (test_\w+)", path.read_text())}
    return functions | {path.stem for path in files}


def main() -> None:
    page = PAGE.read_text()
    codes, rows_of = {kind.code for kind in kinds()}, told(page)
    faults = [
        *(f"has no row for {code}" for code in sorted(codes - rows_of)),
        *(f"has a row for {code}, which no error has" for code in sorted(rows_of - codes - COMMANDS_OWN)),
        *crooked(page),
        *unproved(page, tests()),
    ]
    for fault in faults:
        print(f"{PAGE}: {fault}")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
