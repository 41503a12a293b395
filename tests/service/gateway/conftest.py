"""One gateway with fake services behind it for all tests of this folder."""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.service.gateway.door import Door
from tests.service.gateway.world import GIB, Row, World


# for one file of tests only: its fakes would answer beside the real services of the next folder
@pytest.fixture(scope="module")
def world(rabbit: Broker) -> Iterator[World]:
    made = World()
    with Bus(rabbit.uri) as bus:
        made.serve(bus, "inventory", "snapshots")
        yield made


@pytest.fixture(scope="module")
def door(rabbit: Broker, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    made = Door(tmp_path_factory.mktemp("door"), rabbit.uri, {"EVENT_BUFFER": "50", "STREAM_HEARTBEAT": "0.5"})
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def http(door: Door) -> Iterator[httpx.Client]:
    with door.http() as made:
        yield made


@pytest.fixture
def vm(world: World) -> Row:
    """A running VM with one disk, in places of its own."""
    center = world.put("data_center", id=new(), name=f"dc-{new()[:8]}", mac_first=_MAC, mac_last=_MAC)
    cluster = world.put("cluster", id=new(), name=f"cl-{new()[:8]}", data_center_id=center["id"])
    domain = world.put("storage_domain", id=new(), name=f"sd-{new()[:8]}", data_center_id=center["id"], path="/d")
    id = new()
    disk = world.put(
        "disk",
        id=new(),
        alias=f"disk-{id[:8]}",
        domain_id=domain["id"],
        capacity=GIB,
        format="cow",
        vm_id=id,
        bus="virtio",
        boot_order=None,
    )
    places = {"cluster_id": cluster["id"], "data_center_id": center["id"]}
    shape = {"memory": GIB, "cpus": 1, "firmware": "bios", "display": "none", "boot": None, "nics": []}
    return world.put("vm", id=id, name=f"vm-{id[:8]}", **places, **shape, disks=[disk], state="running")


_MAC = "56:6f:1a:00:00:00"


def new() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path
