"""A start, as far as it goes without libvirt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from contracts import errors
from services.hostagent.vms import Vms

DISK: dict[str, Any] = {"disk_id": "d", "domain": {"id": "s", "path": "/s"}}
NO_MATTER = {
    "full": errors.NoSpace(action="make_bare", domain_id="s", needs=4096, has=0),
    "refused": errors.StorageFailed(action="make_bare", path="/s", reason="EIO"),
    "busy": errors.StorageTimeout(path="/s", seconds=15),
}


def start_with(problem: errors.Problem) -> None:
    def make_bare(*_: Any) -> None:
        raise problem

    vms: Any = object.__new__(Vms)
    vms._storage = SimpleNamespace(make_bare=make_bare)
    vms._make_bare(DISK)


@pytest.mark.parametrize("problem", NO_MATTER.values(), ids=NO_MATTER)
def test_no_start_fails_for_a_name_that_cannot_be_changed(problem: errors.Problem) -> None:
    start_with(problem)


def test_a_header_that_names_another_volume_than_before_ends_it() -> None:
    with pytest.raises(errors.ChainBroken):
        start_with(errors.ChainBroken(disk_id="d", reason="it stands on another one"))
