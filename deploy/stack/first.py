"""The first process of a room: mounts, collects dead children, and ends the room when its owner is gone.

Runs as process 1 of new pid, mount and UTS namespaces, so that its end is the end of everything in there: the
kernel kills the rest with SIGKILL. Only the standard library: it is started by the system's own Python with -I -S.

    first.py '{"binds": [["/tmp/x/etc", "/etc/libvirt"]], "memory": ["/run/libvirt"], "hostname": "h1", "keep": false}'
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys

MS_BIND = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, None) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {source} on {target}")


def collect() -> None:
    """Reap every child that has ended: daemons that lost their parent are ours."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main(order: dict) -> None:
    mount("proc", "/proc", "proc", 0)
    for source, target in order["binds"]:
        mount(source, target, "none", MS_BIND)
    for target in order["memory"]:
        mount("tmpfs", target, "tmpfs", 0)
    if order["hostname"]:
        socket.sethostname(order["hostname"])
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.write(1, b"ready\n")
    leash = [] if order["keep"] else [0]
    while True:
        ready, _, _ = select.select([wake_read, *leash], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            collect()
        # the other end of our standard input is the owner: end of file means that it died or let go
        if 0 in ready and not os.read(0, 1):
            return


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
