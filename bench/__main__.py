"""`python -m bench [rpc http idle merge pull …]` (make bench): all lines, or those named."""

import importlib
import sys

from bench import lines

ALL = ("rpc", "http", "idle", "scan", "overview", "merge", "pull")


def main() -> None:
    chosen = sys.argv[1:] or ALL
    if unknown := set(chosen) - set(ALL):
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(ALL)}.")
    print(lines.HEAD)
    for name in chosen:
        for line in importlib.import_module(f"bench.{name}").run():
            print(line, flush=True)


if __name__ == "__main__":
    main()
