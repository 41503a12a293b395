from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.unit.inventory.town import Town


@pytest.fixture
def town(tmp_path: pathlib.Path) -> Iterator[Town]:
    made = Town(tmp_path)
    yield made
    made.scene.database.close()
