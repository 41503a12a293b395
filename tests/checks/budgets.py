"""The tail is capped: long files, functions, classes and door methods are named, and fail the check.

A piece that must be longer says why in a line `# budget: REASON` above its first line (or on a file's first ten).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FILE, FUNCTION, CLASS, DOOR = 400, 50, 200, 10


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split() if Path(name).exists()]


def excused(lines: list[str], first: int) -> bool:
    """A reason stands within the three lines above a definition (decorators count) or at the top of a file."""
    window = lines[:10] if first == 1 else lines[max(0, first - 4) : first]
    return any("# budget:" in line for line in window)


def too_long(path: Path) -> Iterator[str]:
    text = path.read_text()
    lines = text.splitlines()
    if len(lines) > FILE and not excused(lines, 1):
        yield f"{path}: {len(lines)} lines (at most {FILE})"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        size, limit = (node.end_lineno or node.lineno) - node.lineno + 1, _limit(path, node)
        if size > limit and not excused(lines, first):
            yield f"{path}:{node.lineno} {node.name}: {size} lines (at most {limit})"


def _limit(path: Path, node: ast.FunctionDef | ast.ClassDef) -> int:
    if isinstance(node, ast.ClassDef):
        return CLASS if path.name != "service.py" else FILE
    door = path.name == "service.py" and any("serves" in ast.dump(each) for each in node.decorator_list)
    return DOOR if door else FUNCTION


def main() -> int:
    faults = [fault for path in tracked() for fault in too_long(path)]
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
