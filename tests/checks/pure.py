"""The rules without I/O are listed once, in pyproject.toml under mypy's strict modules; coverage is held on the same.

`python -m tests.checks.pure` names modules that import nothing that reads, writes, waits or calls, and are not in that
list, and those of the list that do; with `--files` it prints the listed ones of the services for coverage's --include.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

# What a rule may import beside contracts and other rules. Of `os` only what turns names into other names.
SAFE = {
    "__future__", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime", "enum", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "operator", "re", "string", "struct", "types", "typing", "uuid",
    "xml",
}  # fmt: skip
NAMES_ONLY = {"os.path.basename", "os.path.dirname", "os.path.join", "os.path.normpath", "os.fsencode"}


def listed() -> set[str]:
    """The modules of services that pyproject.toml calls strict."""
    overrides = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    strict = [part["module"] for part in overrides if part.get("disallow_any_generics")]
    return {module for part in strict for module in part if module.startswith("services.")}


def sources() -> dict[str, str]:
    """The text of each module of the services, but of empty packages and migrations."""
    paths = [
        path for path in Path("services").rglob("*.py") if path.stem != "__init__" and "migrations" not in path.parts
    ]
    return {".".join(path.with_suffix("").parts): path.read_text() for path in paths}


def needs(text: str) -> set[str]:
    """What a module imports when it runs, and whatever it takes from `os`, by whole names."""
    tree = ast.parse(text)
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in (node for node in ast.walk(tree) if id(node) not in only_types):
        found.update(_names(node))
    return found - {"os"}


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute):
        name = ast.unparse(node)
        if re.fullmatch(r"os(\.\w+)+", name) and name != "os.path":
            yield name


def pure(modules: Mapping[str, str]) -> set[str]:
    """Those that need nothing but SAFE, contracts, NAMES_ONLY and each other."""
    wanted = {module: needs(text) for module, text in modules.items()}
    found: set[str] = set()
    while more := {
        module for module in wanted.keys() - found if all(_harmless(name, found) for name in wanted[module])
    }:
        found |= more
    return found


def _harmless(name: str, rules: set[str]) -> bool:
    if name.partition(".")[0] in SAFE | {"contracts"} or name in NAMES_ONLY:
        return True
    return name in rules or name.rpartition(".")[0] in rules


def main() -> None:
    names = listed()
    if "--files" in sys.argv:
        print(",".join(sorted(f"{name.replace('.', '/')}.py" for name in names)))
        return
    found = pure(sources())
    for name in sorted(found - names):
        print(f"{name} is pure and not among mypy's strict modules in pyproject.toml")
    for name in sorted(names - found):
        print(f"{name} is among the strict modules in pyproject.toml and not pure, or not there")
    if found != names:
        sys.exit(1)


if __name__ == "__main__":
    main()
