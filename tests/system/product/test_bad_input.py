"""Bad input on the real stack: each ends in one clear answer, and leaves nothing half done.

docs/bad-input.md lists them all.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.errors import ApiError
from deploy.stack import wait
from deploy.stack.parts import PYTHON, ROOT
from deploy.stack.stack import Stack
from deploy.world import Machine, World
from services.inventory.disks import first_volume_of
from tests.system.product import deaths, spoil
from tests.system.product.spoil import MIB, command, refused, says

pytestmark = pytest.mark.lab
QUICK = {
    "DRYSTONE_HEARTBEAT": "1",
    "DRYSTONE_HEARTBEAT_INTERVAL": "2",
    "DRYSTONE_STORAGE_SECONDS": "3",
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Stack(settings=QUICK) as stack, contextlib.closing(World.of(stack)) as furnished:
        yield furnished


@pytest.fixture(scope="module")
def center(world: World) -> str:
    return str(world.api.clusters.get(world.cluster_id)["data_center_id"])


@pytest.fixture(scope="module")
def sitting(world: World) -> Machine:
    """A VM that runs and writes nothing, with a snapshot."""
    vm = world.machine("sitting", mib=16, write=False)
    vm.api.start_vm(vm.id)
    vm.wait_for_state("running")
    vm.snapshot("of the sitting one")
    return vm


@pytest.fixture(scope="module")
def lying(world: World) -> Machine:
    """A VM that is down, with a snapshot."""
    vm = world.machine("lying", mib=16, write=False)
    vm.snapshot("of the lying one")
    return vm


def snapshot_of(vm: Machine) -> str:
    return str(next(vm.api.snapshots.all(vm_id=vm.id))["id"])


# -- domains ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["srv/data", "/srv/../etc", ""])
def test_a_path_that_is_not_absolute_or_leads_up_is_refused(world: World, center: str, path: str) -> None:
    ask = {"name": "crooked", "data_center_id": center, "path": path}
    refused(lambda: world.api.storage_domains.create(ask), 422, "bad_request", "path: ")


def test_a_crooked_path_ends_the_command_with_4(world: World) -> None:
    words = ("domain", "create", "crooked", "--data-center", "dc1", "--path", "srv/data")
    says(world, words, 4, "The request is not valid. path: Not an absolute path without '..'.")


def _no_directory(path: Path) -> None:
    pass


def _a_file(path: Path) -> None:
    path.write_text("no directory")


def _something_else(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").write_text("a picture")


def _another_domain(path: Path) -> None:
    (path / str(uuid.UUID(int=7)) / "dom_md").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_no_directory, "it does not exist"),
        (_a_file, "it is not a directory"),
        (_something_else, "the directory is not empty: it holds holiday.jpg"),
        (_another_domain, f"the directory holds another domain, {uuid.UUID(int=7)}"),
    ],
)
def test_a_directory_that_cannot_be_a_domain_is_refused_and_left_alone(world: World, center: str, make, reason) -> None:
    path = world.stack.folder / f"bad-{make.__name__}"
    make(path)
    before = spoil.files_below(path)
    ask, key = {"name": make.__name__, "data_center_id": center, "path": str(path)}, str(uuid.uuid4())
    refused(lambda: world.api.storage_domains.create(ask, key), 409, "domain_unusable", path, reason)
    words = ("domain", "create", make.__name__, "--data-center", "dc1", "--path", str(path))
    says(world, words, 4, f"{path} is not a usable storage domain: {reason}.")
    assert spoil.files_below(path) == before
    assert make.__name__ not in {row["name"] for row in world.api.storage_domains.all()}
    with contextlib.suppress(FileNotFoundError):
        path.rename(f"{path}.aside")
    path.mkdir()
    assert world.api.storage_domains.create(ask, key)["state"] == "active"


def test_damaged_metadata_of_a_domain_is_told_and_nothing_is_made(world: World) -> None:
    path = world.stack.folder / "damaged"
    path.mkdir()
    domain = spoil.domain_on(world, "damaged", path)
    metadata = path / domain["id"] / "dom_md/metadata"
    good = metadata.read_bytes()
    metadata.write_bytes(good.replace(b"ROLE=Regular", b"ROLE=Master"))
    ask, key = {"alias": "d", "domain_id": domain["id"], "capacity": MIB}, str(uuid.uuid4())
    refused(lambda: world.api.disks.create(ask, key), 409, "domain_unusable", path, "the checksum is wrong")
    says(world, ("disk", "create", "d", "--domain", "damaged", "-s", "1M"), 4, f"{path}/{domain['id']} is not a usable")
    assert list((path / domain["id"] / "images").iterdir()) == []
    metadata.write_bytes(good)
    path.rename(f"{path}.unmounted")
    refused(lambda: world.api.disks.create(ask, key), 409, "domain_unusable", path, "it does not exist")
    Path(f"{path}.unmounted").rename(path)
    assert world.api.disks.create(ask, key)["state"] == "ok"


# -- a full disk ------------------------------------------------------------------------------------------


def test_on_a_full_storage_nothing_is_made_and_nothing_is_left(world: World, center: str) -> None:
    with spoil.small_storage(world, "full", 16) as small:
        small.fill()
        make = {"name": "full", "data_center_id": center, "path": str(small.path)}
        refused(lambda: world.api.storage_domains.create(make), 409, "no_space")
        assert {path.name for path in small.seen.iterdir()} == {".ballast"}
        small.relieve()
        domain = world.api.storage_domains.create(make)
        vm = spoil.machine_on(world, small, domain["id"], "cramped", mib=8, write=False)
        small.fill()
        before = spoil.files_below(vm.domain / "images")
        ask, key = {"alias": "no-room", "domain_id": domain["id"], "capacity": MIB}, str(uuid.uuid4())
        refused(lambda: world.api.disks.create(ask, key), 409, "no_space", domain["id"])
        says(world, ("disk", "create", "no-room", "--domain", "full", "-s", "1M"), 4, "create_volume needs")
        spoil.undone(vm, vm.api.create_snapshot(vm.id, {"description": "no room"}), "no_space", domain["id"])
        says(world, ("snapshot", "create", "cramped"), 7, "The job ", "undone: create_volume needs", domain["id"])
        assert spoil.files_below(vm.domain / "images") == before
        assert [row["alias"] for row in world.api.disks.all(domain_id=domain["id"])] == ["cramped-disk1"]
        assert list(world.api.snapshots.all(vm_id=vm.id)) == []
        small.relieve()
        assert world.api.disks.create(ask, key)["state"] == "ok"
        vm.snapshot("with room")
        world.api.vms.delete(vm.id, world.api.vms.get(vm.id)["version"])


def test_a_merge_stops_before_the_storage_is_full_and_is_done_when_there_is_room(world: World) -> None:
    with spoil.small_storage(world, "tight", 160) as small:
        domain = spoil.domain_on(world, "tight", small.path)
        vm = spoil.machine_on(
            world, small, domain["id"], "tight-vm", mib=64, ring_mib=32, order="sequential", batch=1024
        )
        kept = vm.snapshot("everything")
        vm.start()
        vm.wait_for_writes(8192)
        small.fill(leave=4 * MIB)
        refused(lambda: vm.api.remove_snapshot(kept), 409, "no_space", domain["id"])
        says(world, ("snapshot", "delete", kept, "--yes"), 4, "merging needs", domain["id"])
        assert vm.api.snapshots.get(kept)["restorable"] is True
        small.relieve()
        job = vm.api.remove_snapshot(kept, bandwidth=2 * MIB)
        wait.until("some progress", lambda: vm.api.jobs.get(job["id"])["progress"]["cur"] > 0, 60)
        busy = {"description": "not now"}
        refused(lambda: vm.api.create_snapshot(vm.id, busy), 409, "disk_busy", vm.disks[0], job["id"])
        says(world, ("snapshot", "create", "tight-vm"), 4, f"The disk {vm.disks[0]} is busy with {job['id']}.")
        small.fill()
        spoil.undone(vm, job, "no_space", domain["id"])
        small.relieve()
        assert vm.remove(kept)["state"] == "done"
        deaths.assert_whole(vm, snapshots=0)
        vm.power_off()


# -- foreign files ----------------------------------------------------------------------------------------


def test_a_foreign_file_with_the_name_of_a_new_volume_is_kept(world: World, lying: Machine) -> None:
    disk_id = str(uuid.uuid4())
    folder = world.stack.domain / world.domain_id / "images" / disk_id
    folder.mkdir()
    foreign = folder / first_volume_of(disk_id)
    foreign.write_bytes(b"somebody's own")
    ask = {"alias": "taken", "domain_id": world.domain_id, "capacity": MIB}
    refused(lambda: world.api.disks.create(ask, disk_id), 409, "already_exists", foreign)
    words = ("disk", "create", "taken", "--domain", "data1", "-s", "1M", "--id", disk_id)
    says(world, words, 4, f"A file with path {foreign} exists already.")
    assert spoil.files_below(folder) == {foreign.name: (14, b"somebody's own")}
    foreign.unlink()
    assert world.api.disks.create(ask, disk_id)["state"] == "ok"


def test_a_foreign_file_with_the_name_of_a_snapshots_volume_is_kept(sitting: Machine) -> None:
    key = uuid.uuid4()
    volume = uuid.uuid5(uuid.uuid5(key, "id"), sitting.disks[0])
    before = spoil.files_below(sitting.folder())
    foreign = sitting.folder() / str(volume)
    foreign.write_bytes(b"somebody's own")
    job = sitting.api.create_snapshot(sitting.id, {"description": "taken"}, key=str(key))
    spoil.undone(sitting, job, "already_exists", foreign)
    assert spoil.files_below(sitting.folder()) == before | {foreign.name: (14, b"somebody's own")}
    foreign.unlink()
    assert len(sitting.chain()) == 2
    sitting.remove(sitting.snapshot("once more"))


def test_a_volume_that_a_foreign_image_stands_on_is_not_merged(sitting: Machine, world: World) -> None:
    base, _ = sitting.chain()
    foreign = sitting.domain / "images/clone.qcow2"
    spoil.qemu_img(
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        f"{sitting.disks[0]}/{base['volume_id']}",
        "-F",
        "qcow2",
        foreign,
        16 * MIB,
    )
    before = spoil.files_below(sitting.domain / "images")
    snapshot = snapshot_of(sitting)
    spoil.undone(sitting, sitting.api.remove_snapshot(snapshot), "volume_in_use", base["volume_id"], foreign)
    told = f"was undone: The volume {base['volume_id']} is used by the file {foreign}."
    says(world, ("snapshot", "delete", snapshot, "--yes"), 7, "The job ", told)
    assert spoil.files_below(sitting.domain / "images") == before
    assert sitting.api.snapshots.get(snapshot)["restorable"] is True
    foreign.unlink()
    sitting.snapshot("newer")
    assert sitting.remove(snapshot)["state"] == "done"


# -- chains that cannot be followed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoils", "code"),
    [
        (spoil.outside, "backing_outside"),
        (spoil.missing, "chain_broken"),
        (spoil.garbage, "chain_broken"),
        (spoil.marks, "chain_broken"),
    ],
)
def test_a_broken_chain_starts_nothing_and_takes_no_snapshot(world: World, lying: Machine, spoils, code: str) -> None:
    volumes = [lying.folder() / volume["volume_id"] for volume in lying.chain()]
    with spoil.kept(lying.folder()):
        reason = spoils(lying, volumes)
        before = spoil.files_below(lying.folder())
        refused(lambda: lying.api.start_vm(lying.id), 409, code, reason)
        says(world, ("vm", "start", "lying"), 4, "The ", reason)
        refused(lambda: lying.api.create_snapshot(lying.id, {}), 409, code, reason)
        assert spoil.files_below(lying.folder()) == before
        assert lying.state() == "down"
    spoil.runs_after_all(lying)


def test_a_backing_file_outside_stops_a_merge(world: World, sitting: Machine) -> None:
    spoil_leaf = sitting.folder() / sitting.chain()[-1]["volume_id"]
    with spoil.renamed_backing(spoil_leaf, "/etc/hostname"):
        refused(
            lambda: sitting.api.remove_snapshot(snapshot_of(sitting)),
            409,
            "backing_outside",
            "/etc/hostname",
            spoil_leaf.name,
        )
        says(
            world,
            ("snapshot", "delete", snapshot_of(sitting), "--yes"),
            4,
            f"The volume {spoil_leaf.name} has the backing file",
        )
    assert sitting.api.snapshots.get(snapshot_of(sitting))["restorable"] is True


# -- rows -------------------------------------------------------------------------------------------------


def test_a_mac_address_is_given_once(world: World) -> None:
    mac = "56:6f:1a:00:99:01"
    spec = {
        "name": "first-nic",
        "cluster_id": world.cluster_id,
        "memory": 64 * MIB,
        "nics": [{"name": "eth0", "mac": mac}],
    }
    world.api.vms.create(spec)
    refused(lambda: world.api.vms.create({**spec, "name": "second-nic"}), 409, "mac_taken", mac)
    words = ("vm", "create", "second-nic", "--cluster", "cluster1", "-m", "64M", "--nic", f"eth0,mac={mac}")
    says(world, words, 4, f"The MAC address {mac} is used already.")
    assert "second-nic" not in {vm["name"] for vm in world.api.vms.all()}


# -- what is away -----------------------------------------------------------------------------------------


def test_a_storage_that_hangs_is_told_in_time(world: World, sitting: Machine, lying: Machine) -> None:
    told = f"The storage under {world.stack.domain} did not answer within 3.0 s."
    with spoil.hung_storage(world, lying):
        refused(lambda: lying.api.create_snapshot(lying.id, {}), 503, "storage_timeout", told)
    with spoil.hung_storage(world, lying):
        says(world, ("snapshot", "create", "sitting"), 6, told)
    with spoil.hung_storage(world, lying):
        refused(lambda: lying.api.start_vm(lying.id), 503, "storage_timeout", told)
    spoil.runs_after_all(lying)


def test_without_libvirt_nothing_starts_and_what_runs_runs_on(world: World, sitting: Machine, lying: Machine) -> None:
    host = world.stack.hosts["h1"]
    pid = host.qemu_pid(f"vm-{sitting.id}")
    world.stack.kill("h1.libvirtd")
    with pytest.raises(ApiError, match="libvirt") as first:
        lying.api.start_vm(lying.id)
    assert first.value.code in ("hypervisor_away", "no_host")  # whether the host has told its trouble yet
    spoil.wait_for_host_state(world, "problem")
    says(world, ("vm", "start", "lying"), 4, "", "libvirt is away: Failed to connect")
    sitting.wait_for_state("unsure")
    for words in (("snapshot", "create", "sitting"), ("snapshot", "delete", snapshot_of(sitting), "--yes")):
        says(world, words, 4, f"QEMU and libvirt differ about VM {sitting.id}: ", "libvirt does not answer")
    world.stack.start_part("h1.libvirtd")
    spoil.wait_for_host_state(world, "up")
    spoil.runs_after_all(lying)
    sitting.wait_for_state("running")
    assert host.qemu_pid(f"vm-{sitting.id}") == pid


def test_without_a_host_that_is_up_nothing_starts(world: World, sitting: Machine, lying: Machine) -> None:
    world.stack.kill("h1.agent")
    spoil.wait_for_host_state(world, "non_responsive")
    refused(lambda: lying.api.start_vm(lying.id), 409, "no_host", world.cluster_id, "its hosts are non_responsive")
    says(world, ("vm", "start", "lying"), 4, f"No host of cluster {world.cluster_id} can take it")
    says(world, ("disk", "create", "x", "--domain", "data1", "-s", "1M"), 4, "No host of data center ")
    says(world, ("snapshot", "create", "lying"), 4, "No host of data center ", "none is up")
    says(world, ("snapshot", "create", "sitting"), 4, f"The host {world.stack.hosts['h1'].id} is silent, not up.")
    world.stack.start_part("h1.agent")
    spoil.wait_for_host_state(world, "up")
    spoil.runs_after_all(lying)
    sitting.wait_for_state("running")


def test_without_rabbitmq_everything_says_so_and_comes_back(world: World, sitting: Machine) -> None:
    world.stack.kill("rabbitmq")
    refused(lambda: world.api.vms.get(sitting.id), 503, "bus_away", "RabbitMQ does not answer: ")
    says(world, ("vm", "list"), 6, "RabbitMQ does not answer: nothing listens at amqp://gateway:***@127.0.0.1")
    world.stack.start_part("rabbitmq")
    # the gateway's own connection comes back after a pause that grows
    wait.until("an answer", lambda: command(world, "vm", "show", "sitting").code == 0, 60)
    spoil.wait_for_host_state(world, "up", 60)
    sitting.wait_for_state("running")
    sitting.snapshot("after the outage")


@pytest.mark.parametrize("module", ["services.inventory", "services.snapshots", "services.hostagent", "gateway"])
def test_a_wrong_password_of_rabbitmq_ends_a_process_with_one_sentence(world: World, module: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ds-") as folder:
        environ = {
            "PATH": os.environ["PATH"],
            "DRYSTONE_AMQP_URI": world.stack.rabbitmq.uri_of("inventory", "not-the-password"),
            "DRYSTONE_STATE_DIR": folder,
            "DRYSTONE_DATABASE_URL": f"sqlite:///{folder}/x.sqlite",
            "DRYSTONE_HOST_ID": str(uuid.uuid4()),
            "DRYSTONE_HTTP_PORT": "0",
        }
        argv = [str(PYTHON), "-m", module]
        # it takes what it started along: a child that lived on would hold the pipes open
        done = subprocess.run(argv, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in done.stderr.splitlines() if "[info" not in line]
    assert (done.returncode, len(said)) == (1, 1), done
    assert "refuses this user and password. Check that the broker runs" in said[0]
    assert "not-the-password" not in done.stdout + done.stderr
