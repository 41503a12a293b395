"""The systemd units name modules and settings that exist."""

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from services.hostagent.lock_setup import MARKER

SANLOCK = Path(__file__).parents[3] / "deploy/systemd/sanlock.service.d/drystone.conf"
UNITS = sorted((Path(__file__).parents[3] / "deploy/systemd").glob("drystone-*.service"))


def values(unit: Path, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.read_text().splitlines() if line.startswith(f"{key}=")]


def settings_of(module: str) -> set[str]:
    """All DRYSTONE_ variables that the process of this module reads."""
    loaded = importlib.import_module(f"{module}.settings")
    classes = [value for value in vars(loaded).values() if dataclasses.is_dataclass(value)]
    return {f"DRYSTONE_{field.name.upper()}" for one in classes for field in dataclasses.fields(one)}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_a_module_that_exists_with_settings_that_it_reads(unit: Path) -> None:
    module = values(unit, "ExecStart")[0].rpartition(" ")[2]
    assert importlib.util.find_spec(f"{module}.__main__")
    named = set(re.findall(r"DRYSTONE_[A-Z_]+(?==)", " ".join(values(unit, "Environment"))))
    assert named - {"DRYSTONE_CONFIG"} <= settings_of(module)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_units_state_folder_is_the_one_its_process_is_told(unit: Path) -> None:
    folder = values(unit, "StateDirectory")[0]
    assert f"DRYSTONE_STATE_DIR=/var/lib/{folder}" in values(unit, "Environment")[0]


def test_there_is_a_unit_for_every_process() -> None:
    assert {unit.stem for unit in UNITS} == {
        "drystone-inventory",
        "drystone-snapshots",
        "drystone-gateway",
        "drystone-hostagent",
    }


def test_a_sanlock_that_died_is_not_started_again_in_the_same_boot(tmp_path: Path) -> None:
    """The two lines of the drop-in as systemd runs them; /run is a folder of ours."""
    marker = tmp_path / MARKER.name
    (before,), (after,) = values(SANLOCK, "ExecStartPre"), values(SANLOCK, "ExecStopPost")

    def run(line: str, result: str = "") -> tuple[int, str]:
        words = [word.replace(str(MARKER), str(marker)) for word in shlex.split(line)]
        env = {**os.environ, "SERVICE_RESULT": result}
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=10, check=False)
        return done.returncode, done.stderr

    assert str(MARKER) in before
    assert run(before) == (0, "")
    assert marker.exists()
    assert run(after, "success") == (0, "")
    assert not marker.exists()
    assert run(before)[0] == 0
    run(after, "signal")
    code, said = run(before)
    assert code == 1
    assert "reboot this host" in said
    assert values(SANLOCK, "Restart") == ["no"]
