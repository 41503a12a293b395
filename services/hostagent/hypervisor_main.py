"""Start of the hypervisor process: `python -m services.hostagent.hypervisor_main PLACE_AS_JSON [PID_OF_THE_DOOR]`.

The door starts it and it dies with the door: two of them on one journal would be one too many (the file lock makes
sure of that).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from pathlib import Path

from chassis import logs
from services.hostagent import place
from services.hostagent.hypervisor import Hypervisor

_PR_SET_PDEATHSIG = 1


def main() -> None:
    here = place.from_json(sys.argv[1])
    logs.setup("hypervisor", level=os.environ.get("DRYSTONE_LOG_LEVEL", "info"), json=False)
    _die_with(int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid())
    Path(here.state_dir).mkdir(parents=True, exist_ok=True)
    here.monitors.mkdir(exist_ok=True)
    held = _alone(here)
    Hypervisor(here).run()
    held.close()


def _die_with(door: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != door:  # it was gone before the wish was heard
        os.kill(os.getpid(), signal.SIGKILL)


def _alone(here: place.Place):  # type: ignore[no-untyped-def]  # an open file
    lock = open(Path(here.state_dir) / "hypervisor.lock", "w", encoding="utf-8")  # noqa: SIM115  held until the end
    fcntl.flock(lock, fcntl.LOCK_EX)  # the one before us is being killed: it takes a moment
    return lock


if __name__ == "__main__":
    main()
