"""A runner of this machine is known to be dead exactly when its process has ended."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chassis.tenure import Tenure
from deploy.stack import wait

HOLD = """
import pathlib, sys, time
from chassis.tenure import Tenure
held = Tenure(pathlib.Path(sys.argv[1]), "other/1")
held.begin()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert made.stdout.readline() == b"held\n"
    yield made
    made.kill()
    made.wait(10)
    made.stdout.close()


def test_a_living_runner_is_not_dead_and_neither_are_we(tmp_path: pathlib.Path, other: subprocess.Popen[bytes]) -> None:
    own = Tenure(tmp_path, "own/1")
    own.begin()
    own.begin()
    assert own.dead() == {}


def test_a_frozen_runner_is_not_dead(tmp_path: pathlib.Path, other: subprocess.Popen[bytes]) -> None:
    os.kill(other.pid, signal.SIGSTOP)
    assert Tenure(tmp_path, "own/1").dead() == {}


def test_a_killed_runner_is_dead_until_it_is_forgotten(tmp_path: pathlib.Path, other: subprocess.Popen[bytes]) -> None:
    own = Tenure(tmp_path, "own/1")
    own.begin()
    other.kill()
    dead = wait.until("the other one to be dead", own.dead, 10)
    assert list(dead) == ["other/1"]
    own.forget(dead["other/1"])
    own.forget(dead["other/1"])
    assert own.dead() == {}


def test_a_folder_that_is_not_there_has_no_dead(tmp_path: pathlib.Path) -> None:
    assert Tenure(tmp_path / "nowhere", "own/1").dead() == {}
