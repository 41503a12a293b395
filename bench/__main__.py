"""`python -m bench [rpc http idle merge …]` (make bench): all lines, or those named. Ends with 1 if one was MISSED."""

import importlib
import sys
from collections.abc import Iterable

from bench import lines

ALL = ("rpc", "http", "idle", "scan", "overview", "merge", "pull")


def main() -> None:
    chosen = sys.argv[1:] or ALL
    if unknown := set(chosen) - set(ALL):
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(ALL)}.")
    print(lines.HEAD)
    missed = told(line for name in chosen for line in importlib.import_module(f"bench.{name}").run())
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def told(measured: Iterable[lines.Line]) -> list[str]:
    """Print each line as soon as it is there; answers the names of those that missed what was wanted."""
    missed = []
    for line in measured:
        print(line, flush=True)
        if line.missed:
            missed.append(line.name)
    return missed


if __name__ == "__main__":
    main()
