"""The client side: children that hang, die, or are busy."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from contracts import errors
from services.hostagent import storage as storage_module
from services.hostagent.storage import QUICK, SLOW, Storage
from tests.unit.hostagent.storage.room import MiB


@pytest.fixture
def own():
    """A storage with children of its own."""
    made = Storage(deadline=30)
    yield made
    made.close()


def child_of(storage: Storage, domain, lane: str = QUICK) -> int:
    return storage._children[(domain["path"], lane)]._process.pid


def test_a_child_lives_as_long_as_it_answers(own, disk, domain):
    disk.chain("v1")
    own.volumes(domain, disk.image)
    first = child_of(own, domain)
    own.volumes(domain, disk.image)
    assert child_of(own, domain) == first


def test_a_call_that_hangs_ends_at_its_deadline_and_the_next_gets_a_new_child(own, disk, domain):
    disk.chain("v1")
    own.volumes(domain, disk.image)
    hung = child_of(own, domain)
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(errors.StorageTimeout, match=r"within 0\.3 s"):
        own.volumes(domain, disk.image, deadline=0.3)
    assert own.volumes(domain, disk.image)["leaf"]
    assert child_of(own, domain) != hung
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_a_hung_storage_does_not_hold_up_another(own, storage, domain, tmp_path_factory, ids):
    other = {"id": ids.other, "path": str(tmp_path_factory.mktemp("other"))}
    storage.create_domain(other, "barn", ids.center)
    own.look_domain(domain)
    hung = child_of(own, domain)
    os.kill(hung, signal.SIGSTOP)
    seen: list[dict] = []
    thread = threading.Thread(target=lambda: seen.append(own.look_domain(domain, deadline=120)))
    thread.start()
    assert own.look_domain(other)["name"] == "barn"
    assert not seen
    os.kill(hung, signal.SIGCONT)
    thread.join(120)
    assert seen


def test_a_mark_does_not_wait_for_a_scan(own, disk, domain):
    _, v2 = disk.chain("v1", "v2")
    own.scan(domain)
    scanner = child_of(own, domain, SLOW)
    os.kill(scanner, signal.SIGSTOP)
    thread = threading.Thread(target=lambda: own.scan(domain))
    thread.start()
    own.mark(domain, disk.image, v2, "illegal")
    assert thread.is_alive()
    os.kill(scanner, signal.SIGCONT)
    thread.join()


def test_who_waits_behind_another_call_times_out_without_ending_it(own, disk, domain):
    disk.chain("v1")
    own.scan(domain)
    scanner = child_of(own, domain, SLOW)
    os.kill(scanner, signal.SIGSTOP)
    scans: list[dict] = []
    thread = threading.Thread(target=lambda: scans.append(own.scan(domain)))
    thread.start()
    while own._children[(domain["path"], SLOW)].idle():
        time.sleep(0.01)
    with pytest.raises(errors.StorageTimeout):
        own.scan(domain, deadline=0.1)
    os.kill(scanner, signal.SIGCONT)
    thread.join()
    assert len(scans[0]["volumes"]) == 1
    assert child_of(own, domain, SLOW) == scanner


def test_a_child_that_was_killed_between_calls_is_replaced(own, disk, domain):
    disk.chain("v1")
    own.volumes(domain, disk.image)
    os.kill(child_of(own, domain), signal.SIGKILL)
    assert own.volumes(domain, disk.image)["leaf"]


def test_a_child_that_dies_in_a_call_is_asked_once_more(tmp_path: Path, disk, domain, ids):
    (v1,) = disk.chain("v1")
    once = tmp_path / "crash"
    once.write_text("volume.create.after_image\n")
    with_crash = Storage(deadline=30, environment={"DRYSTONE_CRASH_FILE": str(once)})
    facts = with_crash.create_volume(domain, disk.image, ids.v2, v1, 64 * MiB)
    with_crash.close()
    assert (facts["volume_id"], disk.leaf) == (ids.v2, ids.v2)
    assert not once.exists()


def test_a_child_that_always_dies_is_a_declared_failure(disk, domain, ids):
    (v1,) = disk.chain("v1")
    with_crash = Storage(deadline=30, environment={"DRYSTONE_CRASH": "volume.create.after_image"})
    with pytest.raises(errors.StorageFailed, match="its process died"):
        with_crash.create_volume(domain, disk.image, ids.v2, v1, 64 * MiB)
    with_crash.close()


def test_a_bug_is_an_internal_error_with_a_correlation_id(own, disk, domain, capfd):
    with pytest.raises(errors.InternalError) as caught:
        own._ask(QUICK, "no_such_call", {"domain": domain}, None)
    assert caught.value.fields["correlation_id"] in capfd.readouterr().err


def test_problems_cross_the_pipe_with_their_fields(own, domain, ids):
    with pytest.raises(errors.NotFound) as caught:
        own.volumes(domain, ids.nobody)
    assert caught.value == errors.NotFound(kind="disk", id=ids.nobody)


def test_idle_children_are_ended_beyond_the_limit(own, domain, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_CHILDREN", 2)
    own.look_domain(domain)
    first = child_of(own, domain)
    for _ in range(3):
        with pytest.raises(errors.DomainUnusable):
            own.look_domain({"id": domain["id"], "path": str(tmp_path_factory.mktemp("empty"))})
    assert len(own._children) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_many_threads_share_the_children(own, disk, domain, ids):
    _, v2 = disk.chain("v1", "v2")
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                own.mark(domain, disk.image, v2, ("legal", "illegal")[number % 2])
                own.volumes(domain, disk.image)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(own._children) == 1


def test_children_end_with_whoever_started_them(disk, domain):
    """The agent is killed: its children see the end of their input."""
    code = (
        "import sys; from services.hostagent.storage import Storage; s = Storage();"
        f"s.look_domain({domain!r}); print(next(iter(s._children.values()))._process.pid, flush=True);"
        "import os; os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(["python3", "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    pid = int(done.stdout)
    limit = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and b"storage_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_child_is_small_and_free_of_the_bus():
    code = "import services.hostagent.storage_child, sys; print(*sys.modules)"
    modules = set(subprocess.check_output(["python3", "-c", code], text=True).split())
    assert not modules & {"marshmallow", "nameko", "kombu", "eventlet", "sqlalchemy", "libvirt", "structlog"}


def test_only_ids_become_paths_and_only_marks_become_marks(own, domain, ids):
    with pytest.raises(errors.BadRequest, match="Not a UUID"):
        own.delete_image(domain, "../..")
    with pytest.raises(errors.BadRequest, match="domain"):
        own.look_domain({**domain, "id": ".."})
    with pytest.raises(errors.BadRequest, match="Not a mark"):
        own.mark(domain, ids.disk, ids.v1, "legal\nVOLTYPE=LEAF")
