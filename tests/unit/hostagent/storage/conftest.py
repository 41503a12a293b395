"""A real file domain in a private folder, real qemu-img, real child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.hostagent.storage import Storage
from tests.unit.hostagent.storage.room import Disk, Ids, run
from tests.unit.hostagent.storage.written import Written


@pytest.fixture
def ids() -> Ids:
    return Ids()


@pytest.fixture(scope="session")
def _storage() -> Iterator[Storage]:
    storage = Storage(deadline=30)
    yield storage
    storage.close()


@pytest.fixture
def storage(_storage: Storage) -> Storage:
    return _storage


@pytest.fixture
def root(tmp_path: Path) -> dict[str, Any]:
    """A directory in which a domain may be made."""
    return {"id": str(uuid.uuid4()), "path": str(tmp_path)}


@pytest.fixture
def domain(storage: Storage, root: dict[str, Any], ids: Ids) -> dict[str, Any]:
    storage.create_domain(root, "silo", ids.center)
    return root


@pytest.fixture
def disk(storage: Storage, domain: dict[str, Any], ids: Ids) -> Disk:
    return Disk(storage, domain, ids.disk, ids)


@pytest.fixture
def other_disk(storage: Storage, domain: dict[str, Any], ids: Ids) -> Disk:
    return Disk(storage, domain, ids.other_disk, ids)


@pytest.fixture
def small_domain(storage: Storage, ids: Ids) -> Iterator[dict[str, Any]]:
    """A domain on a file system of 4 MiB."""
    with tempfile.TemporaryDirectory() as path:
        run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path)
        try:
            yield {"id": ids.small, "path": path}
        finally:
            run("umount", "-l", path)


@pytest.fixture
def die_at() -> Callable[..., None]:
    """Let one storage call die by SIGKILL at a named crash point; fails if it got past it."""

    def die(point: str, op: str, **args: Any) -> None:
        request = json.dumps({"id": 1, "op": op, "args": args}) + "\n"
        done = subprocess.run(
            [sys.executable, "-m", "services.hostagent.storage_child"],
            input=request.encode(),
            env={**os.environ, "DRYSTONE_CRASH": point},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done

    return die


@pytest.fixture
def open_in_qemu() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Start a real QEMU block layer that has a qcow2 file open for writing, its chain below it."""
    made: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:

        def start(path: Path) -> subprocess.Popen[bytes]:
            pid_file = Path(folder, f"{len(made)}.pid")
            process = subprocess.Popen(
                [
                    "qemu-storage-daemon",
                    *("--blockdev", f"driver=file,node-name=file,filename={path}"),
                    *("--blockdev", "driver=qcow2,node-name=disk,file=file"),
                    *("--nbd-server", f"addr.type=unix,addr.path={folder}/{len(made)}.sock"),
                    *("--export", "type=nbd,id=export,node-name=disk,writable=on"),
                    *("--pidfile", str(pid_file)),
                ]
            )
            made.append(process)
            limit = time.monotonic() + 30
            while not pid_file.exists():
                assert process.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.02)
            return process

        yield start
        for process in made:
            process.kill()
            process.wait()


@pytest.fixture
def written(storage, domain, ids) -> Written:
    return Written(storage, domain, ids.disk, ids)
