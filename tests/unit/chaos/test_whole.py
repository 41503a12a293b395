"""The checks of a run fail when something is wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.stack import wait
from tests.chaos import whole

CHAIN = ["v1", "v2"]


class Api:
    """What the gateway would tell of one disk."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {
            "qemu": {"chain": CHAIN[::-1], "job": None},
            "storage": {"leaf": "v2"},
            "libvirt": {"state": "running"},
            "unsure": None,
        }
        self.differences: list[dict[str, str]] = []
        self.leftovers = 0

    def chain(self, _disk: str) -> dict[str, Any]:
        return {"volumes": [{"volume_id": one} for one in CHAIN], "facts": self.facts}

    def diagnose_disk(self, _disk: str) -> dict[str, Any]:
        return {"differences": self.differences}

    def rebuild_overview(self, _domain: str) -> dict[str, Any]:
        return {"leftovers": self.leftovers}


@pytest.fixture
def place(tmp_path: Path) -> Any:
    """A stack with one VM of one disk, as far as the checks look at it."""
    api = Api()
    vm = SimpleNamespace(id="vm", disks=["d1"], domain=tmp_path / "domain", api=api)
    vm.chain = lambda disk: api.chain("d1")["volumes"]
    folder = vm.domain / "images" / "d1"
    folder.mkdir(parents=True)
    for volume in CHAIN:
        for part in whole.PARTS:
            (folder / f"{volume}{part}").touch()
    return SimpleNamespace(
        vm=vm,
        machines=(vm,),
        api=api,
        images=folder,
        world=SimpleNamespace(domain_id="domain"),
        stack=SimpleNamespace(folder=tmp_path),
        until=lambda what, look, _seconds: wait.until(what, look, 0.2),
    )


def test_nothing_is_left_of_a_world_that_is_whole(place: Any) -> None:
    whole.nothing_is_left(place)
    whole.all_sides_agree(place, place.vm, 0, layers=2)


@pytest.mark.parametrize("name", ["_remove_me_v3", "v3.meta.new", "v3", "v1.lease.new"])
def test_a_file_that_is_no_volumes_is_left_behind(place: Any, name: str) -> None:
    (place.images / name).touch()
    with pytest.raises(AssertionError, match=f"left behind: d1/{name}"):
        whole.nothing_is_left(place)


@pytest.mark.parametrize("part", whole.PARTS)
def test_a_file_of_a_volume_that_is_gone_is_missed(place: Any, part: str) -> None:
    (place.images / f"v1{part}").unlink()
    with pytest.raises(AssertionError, match=f"gone: d1/v1{part}"):
        whole.nothing_is_left(place)


def test_what_the_domains_list_calls_a_leftover_is_one(place: Any) -> None:
    place.api.leftovers = 1
    with pytest.raises(AssertionError, match="1 leftovers"):
        whole.nothing_is_left(place)


@pytest.mark.parametrize(
    ("side", "value"),
    [("qemu", {"chain": ["v1"], "job": None}), ("storage", {"leaf": "v1"}), ("unsure", "QEMU and libvirt differ")],
)
def test_a_side_that_sees_another_chain_is_named(place: Any, side: str, value: object) -> None:
    place.api.facts[side] = value
    with pytest.raises(AssertionError, match=r"QEMU has|leaf is|unsure"):
        whole.all_sides_agree(place, place.vm, 0, layers=2)


def test_a_job_that_is_left_and_a_difference_that_the_doctor_finds_are_named(place: Any) -> None:
    place.api.facts["qemu"] = {"chain": CHAIN[::-1], "job": {"top_id": "v2"}}
    with pytest.raises(AssertionError, match="a job is left"):
        whole.all_sides_agree(place, place.vm, 0, layers=2)
    place.api.facts["qemu"]["job"] = None
    place.api.differences = [{"code": "left_over"}]
    with pytest.raises(AssertionError, match="the doctor says"):
        whole.all_sides_agree(place, place.vm, 0, layers=2)


def test_a_libvirt_that_stays_away_and_a_host_that_nobody_can_ask_are_no_end(place: Any) -> None:
    place.api.facts["libvirt"] = {"state": "away"}
    with pytest.raises(wait.NotInTime, match="libvirt's too"):
        whole.all_sides_agree(place, place.vm, 0, layers=2)
    place.api.facts["libvirt"] = {"state": "running"}
    place.api.differences = [{"code": "not_seen"}]
    with pytest.raises(wait.NotInTime, match="a host that the doctor can ask"):
        whole.all_sides_agree(place, place.vm, 0, layers=2)


def test_a_chain_of_another_length_is_no_end(place: Any) -> None:
    with pytest.raises(AssertionError, match="2 volumes in the database, not 3"):
        whole.all_sides_agree(place, place.vm, 0, layers=3)
