"""Locks, pools, the socket, processes, and the name that libvirt would write."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts import errors
from services.hostagent import ipc, locks, place, pools, process, times, virt

VM = "aaaaaaaa-0000-4000-8000-000000000001"


def test_a_lock_tells_who_holds_it() -> None:
    named = locks.Named()
    with named.hold("d1", "flow 1", 1.0), named.hold("d2", "flow 2", 1.0):
        with pytest.raises(errors.DiskBusy) as busy, named.hold("d1", "flow 3", 0.01):
            pass
        assert busy.value.fields["flow_id"] == "flow 1"
    with named.hold("d1", "flow 3", 0.01):
        pass


def test_a_repair_waits_for_asks_and_keeps_new_ones_out() -> None:
    gate = locks.Gate()
    with gate.together(1.0):
        with pytest.raises(locks.GateClosed), gate.alone(0.01):
            pass
        with gate.together(0.01):
            pass
    with gate.alone(1.0), pytest.raises(locks.GateClosed), gate.together(0.01):
        pass
    with gate.together(0.01):
        pass


def test_others_give_way_to_a_guest_that_stands_still_but_not_for_long() -> None:
    still, passed = locks.Still(patience=60.0), threading.Event()
    still.give_way()
    with still.stand():
        waiter = threading.Thread(target=lambda: (still.give_way(), passed.set()))
        waiter.start()
        assert not passed.wait(0.2)
    assert passed.wait(30)
    waiter.join()
    short = locks.Still(patience=0.05)
    with short.stand():
        short.give_way()


def test_pauses_in_a_row_keep_nobody_out_for_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    still, waits = locks.Still(patience=1.0), []

    def wait(seconds: float) -> None:  # the next guest stands still before the last one runs
        waits.append(seconds)
        now[0] += 0.6
        still._pauses[:] = [now[0]]

    with still.stand():
        monkeypatch.setattr(still._condition, "wait", wait)
        still._pauses[:] = [100.0]
        still.give_way()
        still._pauses[:] = [100.0]
    assert waits == [1.0, pytest.approx(0.4)]


def test_the_parts_of_a_pause_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(times.time, "perf_counter", lambda: next(ticks) / 1000)
    pause = times.Times()
    with pause.part("suspend_ms"):  # 0 to 1
        pass  # looking until 2
    with pause.part("pivot_ms"):  # 2 to 3, and 6 to 7
        with pause.part("look_ms"):  # 3 to 4
            pass
        with pause.part("mark_ms"):  # 5 to 6
            pass
    with pause.part("resume_ms"):  # 8 to 9
        pass
    pause.over()
    facts = pause.facts()
    assert sum(facts.values()) == 10
    assert (facts["mark_ms"], facts["resume_ms"]) == (1, 1)


def test_a_call_that_hangs_costs_its_caller_the_deadline_only() -> None:
    pool, free = pools.Pool("test", 1), threading.Event()
    with pytest.raises(pools.TooSlow) as slow:
        pool.run("wait", 0.05, free.wait, 10)
    assert slow.value.begun
    with pytest.raises(pools.TooSlow) as queued:
        pool.run("wait", 0.05, free.wait, 10)
    assert not queued.value.begun
    free.set()
    assert pool.run("wait", 5.0, lambda: 7) == 7


def test_beside_calls_that_hang_nothing_is_asked_until_all_have_ended() -> None:
    """Two of them: a power-off is the one call that is made beside another one, and may hang too."""
    libvirtd = virt.Virt(place.Place("h", "/s"), lambda *_: None, lambda: None)
    free = [threading.Event(), threading.Event()]
    for what, event in zip(("snapshotCreateXML", "destroy"), free, strict=True):
        with pytest.raises(errors.HypervisorAway):
            libvirtd._ask(VM, what, 0.05, event.wait, point="")
    libvirtd.refuse_hung("another VM")
    for event in free:
        with pytest.raises(errors.HypervisorAway, match="still hangs"):
            libvirtd.refuse_hung(VM)
        event.set()
    assert _until(lambda: _passes(lambda: libvirtd.refuse_hung(VM)))


def _passes(call: Callable[[], None]) -> bool:
    try:
        call()
    except errors.HypervisorAway:
        return False
    return True


def test_a_place_survives_its_json() -> None:
    here = place.Place("h", "/s", libvirt_stop=("a", "b"))
    assert place.from_json(here.to_json()) == here


def test_a_qemu_is_found_by_the_uuid_on_its_command_line(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-test"
    program.symlink_to("/bin/sleep")
    assert process.find(VM) is None
    # `sleep` adds what it is given up; -uuid is no number, so it is run by a shell that keeps the words
    script = tmp_path / "qemu-script"
    script.write_text("#!/bin/sh\nread line\n")
    script.chmod(0o755)
    running = subprocess.Popen([str(script), "-uuid", VM.upper(), "-x"], stdin=subprocess.PIPE)
    try:
        found = _until(lambda: process.find(VM))
        assert found is not None
        assert found.pid == running.pid
        assert found.alive()
    finally:
        running.kill()
        running.wait()
        assert running.stdin is not None
        running.stdin.close()
    assert process.find(VM) is None
    assert not found.alive()


def _until(look: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 30
    while not (found := look()) and time.monotonic() < limit:
        time.sleep(0.02)
    return found


@pytest.fixture
def socket_path() -> Iterator[Path]:
    path = Path(f"/tmp/drystone-test-{os.getpid()}.sock")
    yield path
    path.unlink(missing_ok=True)


def serve(path: Path, handle: Callable[[Any, Any], None]) -> ipc.Server:
    server = ipc.Server(path, handle)
    listening = server.listen()
    threading.Thread(target=server.run, args=(listening,), daemon=True).start()
    return server


def test_answers_find_their_askers_in_any_order(socket_path: Path) -> None:
    held: list[tuple[dict[str, Any], Any]] = []

    def handle(message: dict[str, Any], answer: Any) -> None:
        held.append((message, answer))
        if len(held) == 10:
            for one, reply in reversed(held):
                reply({"id": one["id"], "ok": {"n": one["request"]["n"]}})

    serve(socket_path, handle)
    caller = ipc.Caller(socket_path, "hostagent-h", lambda *_: None)
    got: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: caller.call("m", {"n": n}, 5.0)["n"]})) for n in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {n: n for n in range(10)}
    caller.close()


def test_errors_come_back_as_they_were_and_news_in_order(socket_path: Path) -> None:
    def handle(message: dict[str, Any], answer: Any) -> None:
        for n in range(3):
            server.tell("news", {"n": n})
        answer({"id": message["id"], "error": errors.DiskBusy(disk_id="d", flow_id="f").to_wire()})

    server = serve(socket_path, handle)
    heard: list[int] = []
    caller = ipc.Caller(socket_path, "hostagent-h", lambda name, payload: heard.append(payload["n"]))
    with pytest.raises(errors.DiskBusy):
        caller.call("m", {}, 5.0)
    assert heard == [0, 1, 2]
    caller.close()


def test_no_answer_is_unknown_and_no_process_is_away(socket_path: Path) -> None:
    serve(socket_path, lambda *_: None)
    caller = ipc.Caller(socket_path, "hostagent-h", lambda *_: None)
    with pytest.raises(errors.NoAnswer):
        caller.call("m", {}, 0.05)
    caller.close()
    nobody = ipc.Caller(socket_path.with_suffix(".none"), "hostagent-h", lambda *_: None)
    with pytest.raises(errors.ServiceAway):
        nobody.call("m", {}, 0.2)
