"""A process that runs flows a, b, c (no way back), d on a world: `python -m tests.fakes.flow_process URL FOLDER LEASE`.

It is green like a real service. Ends by signals only.
"""

# ruff: noqa: E402
import eventlet

eventlet.monkey_patch()

import pathlib
import sys

from chassis import logs
from chassis.database import Database
from chassis.steps import Flow, Runner
from tests.fakes.flows import World

KIND_NAMES = ("a", "b", "c", "d")
KIND_OPTIONS = {"c": {"no_way_back": True}}


def main(url: str, folder: str, lease: float) -> None:
    logs.setup("flows")
    world = World(pathlib.Path(folder))

    def keep(flow: Flow) -> None:
        flow.save(seen=flow.claim)

    world.after["ask a"] = keep
    kind = world.kind(*KIND_NAMES, **KIND_OPTIONS)
    Runner(Database(url), [kind], instance="twin", lease_seconds=lease).loop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
