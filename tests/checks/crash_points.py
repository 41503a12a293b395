"""Every crash point in the code is armed by some test: its whole name stands in a test, or in a test's id.

`python -m tests.checks.crash_points` names those that no test arms; with `--list` it prints all points.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

AROUND = ("before_ask", "after_ask")
# Points that nothing can reach, each with the reason.
NEVER = {
    "merge.extend.before_ask": "on files QEMU makes base larger by itself: extend is always settled",
    "merge.extend.after_ask": "on files QEMU makes base larger by itself: extend is always settled",
}
# Names that are put together while the code runs: what stands in the code, and what it becomes.
PARTS = {"volume.discard.renamed": ("", ".meta", ".lease"), "volume.discard.removed": ("", ".meta", ".lease")}


def sources() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "services/*.py"], capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split()]


def points() -> set[str]:
    found: set[str] = set()
    for path in sources():
        tree = ast.parse(path.read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            found.update(_of_call(call, _kind(tree)))
    return found - set(NEVER)


def _of_call(call: ast.Call, kind: str) -> Iterator[str]:
    name = ast.unparse(call.func)
    if name == "crash.point":
        yield from _spelled(call.args[0])
    elif name == "peers.attempt":
        yield from (f"inventory.{work}.{moment}" for work in _works(call.args[0]) for moment in AROUND)
    elif name in ("Step", "steps.Step") and kind:
        step = str(ast.literal_eval(call.args[0]))
        undo = ("before_undo", "after_undo") if any(word.arg == "undo" for word in call.keywords) else ()
        yield from (f"{kind}.{step}.{moment}" for moment in (*AROUND, "after_settled", *undo))
    for given in (*call.args, *(word.value for word in call.keywords)):
        if isinstance(given, ast.Constant) and re.fullmatch(r"[a-z_]+\.after_ask", str(given.value)):
            yield str(given.value)  # handed on to where the ask leaves


def _spelled(name: ast.expr) -> Iterator[str]:
    if isinstance(name, ast.Constant):
        yield str(name.value)
    elif isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
        start = str(name.values[0].value)
        yield from (start + (part or ".data") for part in PARTS.get(start, ()))


def _works(name: ast.expr) -> tuple[str, ...]:
    """What the inventory asks for: a name, one of several, or the state that a stop brings about."""
    if isinstance(name, ast.Constant):
        return (str(name.value),)
    if isinstance(name, ast.Subscript) and isinstance(name.value, ast.Dict):
        return tuple(str(ast.literal_eval(value)) for value in name.value.values)
    return ("shutting_down", "powering_off")


def _kind(tree: ast.Module) -> str:
    """The kind of flow that a file describes: its NAME."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAME":
            return str(ast.literal_eval(node.value))
    return ""


def named() -> str:
    """All that tests say: their text, and their ids with the parameters in them."""
    texts = [path.read_text() for path in Path("tests").rglob("test_*.py")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the tests cannot be collected:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return "\n".join([*texts, done.stdout])


def main() -> None:
    found = sorted(points())
    if "--list" in sys.argv:
        print("\n".join(found))
        return
    said = named()
    missed = [point for point in found if not re.search(rf"(?<![\w.]){re.escape(point)}(?![\w.])", said)]
    for point in missed:
        print(f"no test dies at {point}")
    print(f"{len(found)} crash points, {len(found) - len(missed)} armed")
    if missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
