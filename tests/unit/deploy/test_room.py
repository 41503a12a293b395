"""Rooms end with everything in them, and with whoever made them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.stack import proc, room, wait

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture
def one(tmp_path: Path) -> Iterator[room.Room]:
    made = room.Room("one", tmp_path, hostname="inside")
    made.start()
    yield made
    made.end()


def gone(pid: int) -> bool:
    return proc.state(pid) in ("", "Z")


def test_ending_a_room_ends_what_left_its_parent_too(one: room.Room) -> None:
    running = one.spawn("shell", ["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & wait"])
    members = wait.until("three processes", lambda: [*found] if len(found := one.members()) == 3 else None)
    one.end()
    assert all(gone(pid) for pid in [running.pid, *members])


def test_a_room_ends_with_the_process_that_made_it(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time; from deploy.stack import room\n"
        f"one = room.Room('x', pathlib.Path({str(tmp_path)!r})); one.start()\n"
        "running = one.spawn('s', ['sleep', '1000']); running.signal(19)  # frozen: the hardest to end\n"
        "print(running.pid, flush=True); time.sleep(1000)"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root) as maker:
        assert maker.stdout is not None
        pid = int(maker.stdout.readline())
        assert not gone(pid)
        maker.send_signal(signal.SIGKILL)
    wait.until("the sleeper's end", lambda: gone(pid), 10)


def test_a_room_that_is_kept_is_ended_by_what_was_written_down(tmp_path: Path) -> None:
    kept = room.Room("kept", tmp_path, keep=True)
    kept.start()
    name = kept.name_for_ever()
    try:
        assert not room.end_by_name({**name, "born": int(name["born"]) + 1}), "another process with this pid"
        assert kept.alive()
        assert room.end_by_name(name)
    finally:
        kept.end()
    assert not room.end_by_name(name)


def test_mounts_and_the_host_name_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/here").touch()
    one = room.Room("two", tmp_path, {tmp_path / "mine": "/mnt"}, hostname="inside")
    one.start()
    assert one.run(["ls", "/mnt"]) == "here\n"
    assert one.run(["hostname"]) == "inside\n"
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    one.end()


def test_a_frozen_process_still_ends_when_asked(one: room.Room) -> None:
    running = one.spawn("sleeper", ["sleep", "1000"])
    running.signal(signal.SIGSTOP)
    wait.until("it to stop", lambda: proc.state(running.pid) == "T")
    running.end(5)
    assert not running.alive()


def test_a_frozen_process_goes_on_when_thawed_and_is_seen_to_end(one: room.Room) -> None:
    running = one.spawn("sleeper", ["sh", "-c", "while :; do sleep 0.01; done"])
    for _ in range(5):
        running.signal(signal.SIGSTOP)
        wait.until("it to stop", lambda: proc.state(running.pid) == "T")
        running.signal(signal.SIGCONT)
        wait.until("it to go on", lambda: proc.state(running.pid) != "T")
    os.kill(running.pid, signal.SIGKILL)
    wait.until("its end to be seen", lambda: not running.alive())


def test_a_room_with_a_frozen_process_ends(one: room.Room) -> None:
    running = one.spawn("sleeper", ["sleep", "1000"])
    running.signal(signal.SIGSTOP)
    wait.until("it to stop", lambda: proc.state(running.pid) == "T")
    one.end()
    assert gone(running.pid)


def test_a_pid_of_the_inside_is_found_outside(one: room.Room) -> None:
    pidfile = one.folder / "pid"
    running = one.spawn("shell", ["sh", "-c", f"echo $$ > {pidfile}; exec sleep 1000"])
    inner = wait.until("its pid", lambda: pidfile.read_text() if pidfile.exists() else None)
    assert one.outside(int(inner)) == running.pid
    assert one.outside(99999) is None


def test_what_a_command_says_when_it_fails_is_in_the_error(one: room.Room) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        one.run(["ls", "/nowhere"])
    assert "No such file" in caught.value.__notes__[0]


def test_an_ended_room_says_so(one: room.Room) -> None:
    one.end()
    with pytest.raises(room.RoomGone, match="one is not running"):
        one.run(["true"])
