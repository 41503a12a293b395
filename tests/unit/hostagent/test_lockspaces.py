"""Lockspaces beside a sanlock that takes connections and answers none."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts import errors
from services.hostagent.journal import Journal
from services.hostagent.lockspaces import Lockspaces
from services.hostagent.place import Place
from services.hostagent.storage import Storage

SECONDS = 2.0  # of one ask


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "sanlock.sock"))
        mute.listen(16)
        made = Storage(SECONDS, {"SANLOCK_RUN_DIR": str(tmp_path)})
        yield made
        made.close()


@pytest.fixture
def spaces(storage: Storage, tmp_path: Path) -> Lockspaces:
    return Lockspaces(Place("h1", str(tmp_path)), storage, Journal(tmp_path / "journal.json"), lambda: None)


@pytest.fixture
def lease(storage: Storage, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "storage").mkdir()
    domain = {"id": str(uuid.uuid4()), "path": str(tmp_path / "storage")}
    storage.create_domain(domain, "d1", str(uuid.uuid4()), 1, deadline=20.0)
    return {"domain": domain, "sanlock_id": 1, "io_timeout": 1}


def test_an_ask_to_join_waits_for_nobody(spaces: Lockspaces, lease: dict[str, Any]) -> None:
    began = time.monotonic()
    assert [spaces.join(lease)["state"] for _ in range(20)] == ["joining"] * 20
    assert time.monotonic() - began < SECONDS / 2
    assert [facts["state"] for facts in spaces.facts()] == ["joining"]


def test_a_start_is_told_in_time(spaces: Lockspaces, lease: dict[str, Any]) -> None:
    began = time.monotonic()
    with pytest.raises(errors.LockspaceNotJoined, match="did not answer within 2"):
        spaces.wait_joined(lease)
    assert time.monotonic() - began < 4 * SECONDS
    assert [facts["state"] for facts in spaces.facts()] == ["failed"]
