"""What the processes cost while nobody asks for anything: share of one core all together, and memory of each.

"plain" is the budget of CONTRIBUTING: 2 % of a core for all, 90 MiB for each (bare imports of the frame take 68).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.lines import Line, Ratio
from deploy.stack.stack import Stack
from deploy.world import World

SETTLE, WATCH = 10.0, 30.0  # seconds
CORE_SHARE, MEMORY = 2.0, 90.0  # percent of one core, MiB


def run() -> list[Line]:
    with Stack() as stack:
        World.of(stack)
        time.sleep(SETTLE)
        names = {name: stack.process(name).pid for name in ("inventory", "snapshots", "gateway", "h1.agent")}
        tree = {name: _with_children(pid) for name, pid in names.items()}
        begun, before = time.monotonic(), _cpu(tree)
        time.sleep(WATCH)
        share = (_cpu(tree) - before) / (time.monotonic() - begun) * 100
        lines = [Line("idle: all services and the agent, of a core", "%", [share], [CORE_SHARE], Ratio(1))]
        for name, pids in tree.items():
            lines += [_memory(name, number, pid) for number, pid in enumerate(pids)]
        return lines


def _memory(name: str, number: int, pid: int) -> Line:
    words = f"idle: memory of {name}{f', its child {number}' if number else ''}"
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Line(words, "MiB", [pages * os.sysconf("SC_PAGE_SIZE") / 2**20], [MEMORY], Ratio(1))


def _with_children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in _with_children(int(child)))]


def _cpu(tree: dict[str, list[int]]) -> float:
    """Seconds of processor time of all processes so far."""
    ticks = 0
    for pids in tree.values():
        for pid in pids:
            words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")
