"""Real hosts (namespaces with libvirt and QEMU), the writing guest, and the whole stack."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.guest import image
from deploy.stack.host import Host
from deploy.stack.stack import Stack


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a path short enough for unix sockets."""
    made = Path(tempfile.mkdtemp(prefix="ds-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def host(folder: Path) -> Iterator[Host]:
    one = Host(folder / "h1", "h1")
    one.start()
    yield one
    one.end()


@pytest.fixture
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    pair = Host(folder / "h1", "h1"), Host(folder / "h2", "h2")
    for one in pair:
        one.start()
    yield pair
    for one in pair:
        one.end()


@pytest.fixture(scope="session")
def guest() -> image.Image:
    """Kernel and initramfs of the writing guest."""
    return image.build()


@pytest.fixture
def stack(folder: Path) -> Iterator[Stack]:
    """Broker, services, gateway and one host with its agent."""
    with Stack(folder / "s") as one:
        yield one


@pytest.fixture
def two_host_stack(folder: Path) -> Iterator[Stack]:
    """The same with two hosts, h1 and h2."""
    with Stack(folder / "s", hosts=2) as one:
        yield one
