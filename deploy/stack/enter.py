"""Starts one program inside a room, waits for it, and ends with its status (128 + signal when it was killed).

nsenter would do, but it stops itself when its program is stopped: a frozen program could then never be reaped, and the
room could not end. Only the standard library: it is started by the system's own Python with -I -S.

    enter.py PID FOLDER PROGRAM ARGUMENTS...     PID is the room's first process
"""

import ctypes
import os
import sys

_libc = ctypes.CDLL(None, use_errno=True)


def join(pid: str) -> None:
    """Join the namespaces; a pid namespace takes only children that come later."""
    spaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("uts", "pid", "mnt")]
    for space in spaces:
        if _libc.setns(space, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot join the room")


def main(pid: str, folder: str, program: list[str]) -> int:
    join(pid)
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            os.execvp(program[0], program)  # noqa: S606  no shell is what we want
        except OSError as fault:
            print(f"{program[0]}: {fault}", file=sys.stderr, flush=True)
            os._exit(127)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
