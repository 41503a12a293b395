"""Clock, crash points, logs."""

from __future__ import annotations

import datetime
import io
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from chassis import clock, context, crash, logs

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_the_fake_clock_moves_only_when_told() -> None:
    fake = clock.FakeClock()
    before = fake.now()
    fake.advance(1.5)
    fake.sleep(0.5)
    assert (fake.now() - before).total_seconds() == fake.monotonic() == 2


def test_the_systems_clock_is_utc_and_moves() -> None:
    real: clock.Clock = clock.SystemClock()
    started = real.monotonic()
    real.sleep(0.01)
    assert real.monotonic() - started >= 0.01
    assert real.now().tzinfo is datetime.UTC
    before = datetime.datetime.now(datetime.UTC)  # time.time() has more digits: it may be a little later than `now`
    assert before <= real.now() <= datetime.datetime.now(datetime.UTC)


def test_times_are_written_in_utc_and_read_back() -> None:
    moment = datetime.datetime(2026, 5, 1, 2, 3, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    assert clock.iso(moment) == "2026-05-01T00:03:04.000005Z"
    assert clock.parse(clock.iso(moment)) == moment
    with pytest.raises(ValueError, match="has no zone"):
        clock.parse("2026-05-01T00:03:04")


# -- crash points -----------------------------------------------------------------------------------------


def ends_with(**environment: str) -> int:
    program = "from chassis import crash; crash.point('one'); crash.point('two')"
    return subprocess.run([sys.executable, "-c", program], env={**os.environ, **environment}, cwd=ROOT).returncode  # noqa: PLW1510


def test_a_chosen_crash_point_kills_the_process() -> None:
    assert ends_with(DRYSTONE_CRASH="two") == -signal.SIGKILL
    assert ends_with(DRYSTONE_CRASH="three") == 0


def test_a_crash_file_fires_once(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "crash"
    file.write_text("two\n")
    assert ends_with(DRYSTONE_CRASH_FILE=str(file)) == -signal.SIGKILL
    assert ends_with(DRYSTONE_CRASH_FILE=str(file)) == 0
    assert (tmp_path / "crash.fired").exists()


def test_of_two_processes_with_one_crash_file_one_dies(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[bool] = []
    monkeypatch.setattr(crash, "_die", lambda: died.append(True))
    monkeypatch.setenv("DRYSTONE_CRASH_FILE", str(tmp_path / "crash"))
    (tmp_path / "crash").write_text("x")
    crash.point("x")
    crash.point("x")
    assert died == [True]
    monkeypatch.setattr(crash, "_named_in", lambda _: "x")  # the other one read it just before
    crash.point("x")
    assert died == [True]
    monkeypatch.setenv("DRYSTONE_CRASH", "x")
    crash.point("x")
    assert died == [True, True]


def test_a_process_that_is_held_says_who_it_is_and_goes_on_later(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "crash"
    file.write_text("two hold\n")
    program = "from chassis import crash; crash.point('one'); crash.point('two'); crash.point('two')"
    held = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "DRYSTONE_CRASH_FILE": str(file)}, cwd=ROOT
    )
    assert os.WIFSTOPPED(os.waitpid(held.pid, os.WUNTRACED)[1])
    assert (tmp_path / "crash.fired").read_text() == f"two hold\n{held.pid}\n"
    held.send_signal(signal.SIGCONT)
    assert held.wait(60) == 0


def test_a_process_that_is_only_watched_tells_once_that_it_came_by(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "crash"
    file.write_text("two pass\n")
    assert ends_with(DRYSTONE_CRASH_FILE=str(file)) == 0
    assert (tmp_path / "crash.fired").read_text() == "two pass\n"
    assert not file.exists()


def test_to_die_is_sigkill(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: seen.append((pid, number)))
    crash._die()
    assert seen == [(os.getpid(), signal.SIGKILL)]


# -- logs -------------------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    kept, level = list(logging.getLogger().handlers), logging.getLogger().level
    yield io.StringIO()
    logging.getLogger().handlers[:] = kept
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_the_calls_ids(lines: io.StringIO) -> None:
    logs.setup("inventory", json=True, stream=lines)
    with context.use(context.Call(request_id="r1", flow_id="f1", user="ann", deadline=None)):
        logs.get("part").info("something happened", disk_id="d1", user="bob")
    logs.get("part").debug("not this")
    found = json.loads(lines.getvalue())
    assert found["event"] == "something happened"
    assert (found["service"], found["logger"], found["level"]) == ("inventory", "part", "info")
    assert (found["request_id"], found["flow_id"], found["user"], found["disk_id"]) == ("r1", "f1", "bob", "d1")


def test_a_traceback_stays_within_its_line(lines: io.StringIO) -> None:
    logs.setup("inventory", json=True, stream=lines)
    try:
        raise ZeroDivisionError("no")
    except ZeroDivisionError:
        logs.get("part").exception("it broke")
    assert "ZeroDivisionError: no" in json.loads(lines.getvalue())["exception"]


def test_other_libraries_lines_look_the_same(lines: io.StringIO) -> None:
    logs.setup("inventory", json=True, stream=lines)
    logging.getLogger("nameko.containers").warning("it %s", "hurts")
    logging.getLogger("kombu").info("too much")
    found = json.loads(lines.getvalue())
    assert (found["event"], found["logger"], found["service"]) == ("it hurts", "nameko.containers", "inventory")


def test_lines_for_eyes_are_sentences(lines: io.StringIO) -> None:
    logs.setup("inventory", level="debug", stream=lines)
    logs.get("part").debug("100 % of it happened", disk_id="d1")
    assert "100 % of it happened" in lines.getvalue()
    assert "disk_id=d1" in lines.getvalue()
