"""A process that runs flows a, b, c (no way back), d on a world.

    python -m tests.fakes.flow_process URL FOLDER LEASE HOME

It is green like a real service, so nobody may import this module. Step c fails while the file `fail-c` is in the
world. Ends by signals only.
"""

# ruff: noqa: E402
import eventlet

eventlet.monkey_patch()

import pathlib
import sys

from chassis import logs
from chassis.database import Database
from chassis.steps import Flow, Runner
from contracts import errors
from tests.fakes.flows import KIND_NAMES, KIND_OPTIONS, World


def main(url: str, folder: str, lease: float, home: str) -> None:
    logs.setup("flows")
    world = World(pathlib.Path(folder))

    def keep(flow: Flow) -> None:
        flow.save(seen=flow.claim)

    def fail(flow: Flow) -> None:
        if (world.folder / "fail-c").exists():
            raise errors.DiskBusy(disk_id=flow.subject, flow_id="other")

    world.after["ask a"] = keep
    world.before["look c"] = fail
    kind = world.kind(*KIND_NAMES, **KIND_OPTIONS)
    Runner(Database(url), [kind], instance="twin", lease_seconds=lease, home=pathlib.Path(home)).loop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
