"""Leases of VMs on real sanlock: two hosts, one domain. io_timeout is 1 s: a lockspace is joined in 3 s."""

from __future__ import annotations

import pytest

from contracts import errors
from deploy.stack import wait
from services.hostagent import layout, under_lease
from services.hostagent.lock_setup import MARKER
from tests.system.hostagent.lab import MIB, Agent, in_background, new_id
from tests.system.hostagent.leased import LeasedVm, start, state, wait_joined, write_offline

pytestmark = pytest.mark.lab
Pair = tuple[Agent, Agent]


@pytest.fixture
def vm(leased_vm: LeasedVm) -> LeasedVm:
    return leased_vm


def test_a_second_start_is_refused_with_the_holder_named(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    assert start(first, vm, 1)["state"] == "running"
    wait_joined(second, vm)
    with pytest.raises(errors.LeaseHeld, match="host number 1"):
        start(second, vm, 2)
    assert state(second, vm) == "down"
    assert state(first, vm) == "running"


def test_one_lease_is_made_when_two_hosts_ask_at_once(agents: Pair, vm: LeasedVm) -> None:
    """Both write under SDM; one start is refused, and the index names the VM once."""
    for agent in agents:
        wait_joined(agent, vm)
    with in_background(start, agents[0], vm, 1) as one, in_background(start, agents[1], vm, 2) as other:
        pass
    outcomes = [one, other]
    assert sorted(key for outcome in outcomes for key in outcome if key != "at") == ["problem", "reply"], outcomes
    index = vm.xleases.read_bytes()[MIB : MIB + 512 + 3960 * 64]
    assert index.count(vm.id.encode()) == 1


def test_the_index_is_the_familys_byte_by_byte(agents: Pair, vm: LeasedVm) -> None:
    start(agents[0], vm, 1)
    data = vm.xleases.read_bytes()
    made = int(data[MIB + 59 : MIB + 69])
    # the first record is free: every other VM's lease went with it
    record = vm.id.encode().ljust(48, b"\0") + b"\0" + b"00003145728" + b"\0" + b"--\n"
    wanted = layout.empty_lease_index(vm.domain["id"], made)
    assert data[MIB : MIB + len(wanted)] == wanted[:512] + record + wanted[576:]
    assert len(data) >= 4 * MIB
    resource = agents[0].host.run("sanlock", "direct", "dump", f"{vm.xleases}:{3 * MIB}:{MIB}")
    assert vm.id in resource


def test_a_lease_goes_with_its_vm_but_never_while_it_is_held(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    start(first, vm, 1)
    wait_joined(second, vm)
    for agent in agents:
        with pytest.raises(errors.LeaseHeld):
            agent.ask("drop_lease", {"vm_id": vm.id, "domain": vm.domain})
    first.ask("power_off_vm", {"vm_id": vm.id})
    second.ask("drop_lease", {"vm_id": vm.id, "domain": vm.domain})
    second.ask("drop_lease", {"vm_id": vm.id, "domain": vm.domain})
    assert vm.id.encode() not in vm.xleases.read_bytes()[MIB : 2 * MIB]
    assert start(second, vm, 2)["state"] == "running"


def test_an_offline_writer_and_a_start_exclude_each_other(agents: Pair, vm: LeasedVm) -> None:
    first, second = agents
    for agent in agents:
        wait_joined(agent, vm)
    begun, go = vm.xleases.with_name("begun"), vm.xleases.with_name("go")
    write = f"qemu-img resize -q {vm.folder() / vm.volumes[0][0]} 300M"
    shell = f"touch {begun}; until [ -e {go} ]; do sleep 0.1; done; {write}"
    with in_background(write_offline, first, vm, "sh", "-c", shell) as writing:
        wait.until("the writer to hold the lease", begun.exists, 30)
        assert "host number 1" in str(refused_start(second, vm, 2))
        assert "a process of this host" in str(refused_start(first, vm, 1))
        go.touch()
    assert writing["reply"] == "0"
    assert start(second, vm, 2)["state"] == "running"
    assert write_offline(first, vm, "true").startswith("lease_held")
    assert write_offline(second, vm, "true").startswith("lease_held")


def refused_start(agent: Agent, vm: LeasedVm, number: int) -> errors.Problem | None:
    """The refusal of a start; a VM that started is powered off again."""
    try:
        start(agent, vm, number)
    except errors.LeaseHeld as held:
        return held
    agent.ask("power_off_vm", {"vm_id": vm.id})
    return None


def test_a_guest_whose_lease_could_not_be_taken_again_is_not_paused(agents: Pair, vm: LeasedVm) -> None:
    """Without sanlock libvirt would suspend it, and refuse every resume."""
    first, _ = agents
    start(first, vm, 1)
    vm.snapshot()
    request = vm.commit(0)
    vm.wait_ready()
    first.host.kill_sanlock()
    try:
        with pytest.raises(errors.LeaseFailed, match=r"relied on for a pause: .*sanlock does not answer"):
            first.ask("pivot", request)
        vm.writes_on()
        vm.cancel(request)
        assert vm.look()["qemu"]["chain"][0] == request["top_id"]
    finally:
        first.ask("power_off_vm", {"vm_id": vm.id})
        first.host.start_sanlock()


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("qemu.conf", ('lock_manager = "sanlock"', ""), "lock_manager is not set in /etc/libvirt/qemu.conf"),
        ("qemu.conf", ('"sanlock"', '"lockd"'), "lock_manager is 'lockd' in /etc/libvirt/qemu.conf"),
        ("qemu-sanlock.conf", ("auto_disk_leases = 0", ""), "auto_disk_leases is not 0"),
        ("qemu-sanlock.conf", ("for_disks = 0", "for_disks = 1"), "require_lease_for_disks is not 0"),
    ],
)
def test_a_wrong_set_up_is_refused_with_file_and_option(
    agents: Pair, vm: LeasedVm, file: str, change: tuple[str, str], says: str
) -> None:
    path = agents[0].host.folder / "etc" / file
    good = path.read_text()
    path.write_text(good.replace(*change))
    try:
        with pytest.raises(errors.LeasesUnfit, match=says):
            start(agents[0], vm, 1)
    finally:
        path.write_text(good)
    assert state(agents[0], vm) == "down"


def test_a_sanlock_that_could_be_started_twice_in_one_boot_is_refused(agents: Pair, vm: LeasedVm) -> None:
    room = agents[0].host.room
    room.run(["rm", str(MARKER)])
    try:
        with pytest.raises(errors.LeasesUnfit, match="started twice in one boot"):
            start(agents[0], vm, 1)
    finally:
        room.run(["touch", str(MARKER)])
    assert start(agents[0], vm, 1)["state"] == "running"


def test_a_process_that_is_given_no_lease_runs_no_command(agents: Pair, vm: LeasedVm) -> None:
    """The domain's lockspace is not joined here at all: on this machine's own, where no sanlock runs."""
    with pytest.raises(errors.LeaseFailed):
        under_lease.start(vm.domain, new_id(), 3 * MIB, ["touch", str(vm.xleases.with_name("ran"))])
    assert not vm.xleases.with_name("ran").exists()
