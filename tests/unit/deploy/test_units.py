"""The systemd units name modules and settings that exist."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

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
