"""Start, snapshot, merge and stop on real QEMU, and everything that is refused on the way."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts import errors
from deploy.stack import wait
from tests.system.hostagent.lab import MIB, Agent, Vm, in_background, new_id

pytestmark = pytest.mark.lab


def ready_active_commit(vm: Vm) -> dict:
    vm.snapshot()
    vm.writes_on()
    request = vm.commit(0)
    vm.wait_ready()
    return request


def test_internal_and_active_layers_are_merged_under_a_writing_guest(agent: Agent, vm: Vm) -> None:
    for _ in range(3):
        vm.snapshot()
        vm.writes_on()
    internal = vm.commit(1)
    vm.wait_merged(internal)
    agent.ask("record_merge", internal)
    vm.finish(internal)
    active = vm.commit(1)
    assert vm.wait_ready()["storage"]["leaf"] == active["top_id"]
    times = agent.ask("pivot", active)
    facts = vm.look()
    assert facts["qemu"]["chain"] == facts["libvirt"]["chain"] == vm.volumes[0][1::-1]
    assert facts["storage"]["leaf"] == active["base_id"]
    assert facts["unsure"] is None
    assert sum(times.values()) < 1000
    vm.finish(active)
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()
    assert {path.name[:36] for path in vm.folder().iterdir()} == set(vm.volumes[0])


def test_ranges_of_layers_are_merged_in_one_job_each(agent: Agent, vm: Vm) -> None:
    for _ in range(7):
        vm.snapshot()
        vm.writes_on(50)
    internal = vm.commit(1, layers=3, bandwidth=2 * MIB)
    assert ends(vm) == (internal["base_id"], internal["top_id"])
    with pytest.raises(errors.ForeignJob):
        vm.commit(1, layers=2)
    vm.agent.ask("set_bandwidth", {**{k: internal[k] for k in ("vm_id", "disk", "claim")}, "bandwidth": 0})
    vm.wait_merged(internal)
    vm.finish(internal)
    active = vm.commit(1, layers=3)
    assert ends(vm) == (active["base_id"], active["top_id"])
    assert vm.wait_ready()["storage"]["leaf"] == active["top_id"]
    with pytest.raises(errors.ChainDiffers):
        agent.ask("pivot", {**active, "between": active["between"][1:]})
    agent.ask("pivot", active)
    assert vm.leaf() == active["base_id"]  # before anything else is recorded
    vm.finish(active)
    assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()
    assert {path.name[:36] for path in vm.folder().iterdir()} == set(vm.volumes[0])


def ends(vm: Vm) -> tuple[str | None, str | None]:
    job = vm.look()["qemu"]["job"]
    return job["base_id"], job["top_id"]


def test_an_agent_that_dies_with_a_pivoted_range_leaves_base_as_the_leaf(agent: Agent, vm: Vm) -> None:
    for _ in range(3):
        vm.snapshot()
        vm.writes_on(50)
    request = vm.commit(0, layers=3)
    vm.wait_ready()
    agent.crash_at("pivot.after_mark")
    with in_background(agent.ask, "pivot", request):
        agent.wait_crashed()
    agent.start()
    wait.until("the pause to be over", lambda: not agent.journal()["pauses"], 30)
    assert vm.leaf() == request["base_id"]
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()
    vm.start()
    vm.finish(request)
    vm.writes_on()


def test_the_news_of_a_merge_come_once_a_second_and_end_with_its_end(agent: Agent, vm: Vm) -> None:
    vm.snapshot()
    vm.writes_on()
    vm.snapshot()
    request = vm.commit(0, bandwidth=2 * MIB)
    time.sleep(3)
    assert vm.look()["qemu"]["job"]["speed"] == 2 * MIB
    agent.ask("set_bandwidth", {**{k: request[k] for k in ("vm_id", "disk", "claim")}, "bandwidth": 0})
    vm.wait_merged(request)
    told = [news for name, news in agent.news if name == "job_changed"]
    wait.until("the end to be told", lambda: told_statuses(agent)[-1] == "completed", 10)
    assert {news["disk_id"] for news in told} == {vm.disks[0]["disk_id"]}
    assert 2 <= told_statuses(agent).count("running") <= 8


def told_statuses(agent: Agent) -> list[str]:
    return [news["status"] for name, news in agent.news if name == "job_changed"]


def test_everything_may_be_asked_twice(agent: Agent, vm: Vm) -> None:
    assert agent.ask("start_vm", vm.spec())["state"] == "running"
    request = ready_active_commit(vm)
    agent.ask("start_commit", {**request, "bandwidth": 0})
    first = agent.ask("pivot", request)
    again = agent.ask("pivot", request)
    assert first["pivot_ms"] > 0
    assert first["look_ms"] > 0
    assert again == dict.fromkeys(first, 0)
    agent.ask("start_commit", {**request, "bandwidth": 0})
    assert vm.look()["qemu"]["job"] is None
    vm.finish(request)
    agent.ask(
        "discard_volume",
        {"vm_id": vm.id, "disk": request["disk"], "volume_id": request["top_id"], "claim": vm.claim},
    )
    vm.power_off()
    vm.power_off()


def test_two_disks_are_switched_at_once_and_merged_apart(make_vm: Callable[..., Vm]) -> None:
    vm = make_vm(disks=2)
    vm.start()
    vm.snapshot()
    vm.writes_on()
    for disk in (0, 1):
        request = vm.commit(0, disk)
        vm.wait_ready(disk)
        vm.agent.ask("pivot", request)
        vm.finish(request, disk)
    vm.writes_on()
    vm.power_off()
    for disk in (0, 1):
        assert vm.check(disk).ok, vm.check(disk).summary()


def test_a_guest_that_somebody_paused_stays_paused(agent: Agent, vm: Vm) -> None:
    request = ready_active_commit(vm)
    agent.host.virsh("suspend", f"vm-{vm.id}")
    agent.ask("pivot", request)
    facts = agent.ask("look_vm", {"vm_id": vm.id})
    assert (facts["state"], facts["paused_by"]) == ("paused", "user")
    agent.host.virsh("resume", f"vm-{vm.id}")
    vm.writes_on()


def test_a_pivot_that_does_not_come_about_is_given_up_with_the_guest_on_top(agent: Agent, vm: Vm) -> None:
    """Peer regression 15 (endless pivot; leaf left illegal after a failed pivot)."""
    request = ready_active_commit(vm)
    agent.crash_at("pivot.after_suspend")
    with in_background(agent.ask, "pivot", request):
        agent.wait_crashed()
    (job,) = [line for line in qmp(agent, vm, '{"execute":"query-jobs"}').split('"') if line.startswith("commit-")]
    qmp(agent, vm, f'{{"execute":"block-job-pause","arguments":{{"device":"{job}"}}}}')
    agent.start()
    wait.until("the guest to run on", vm.running, 60)
    wait.until("the pause to be over", lambda: not agent.journal()["pauses"], 10)
    facts = vm.look()
    assert facts["qemu"]["job"] is None
    assert facts["storage"]["leaf"] == facts["qemu"]["chain"][0] == request["top_id"]
    vm.writes_on()
    agent.ask("start_commit", {**request, "bandwidth": 0})
    vm.wait_ready()
    agent.ask("pivot", request)


def qmp(agent: Agent, vm: Vm, command: str) -> str:
    return agent.host.virsh("qemu-monitor-command", f"vm-{vm.id}", command)


def test_a_pivot_is_refused_before_the_mirror_is_ready(agent: Agent, vm: Vm) -> None:
    """Peer regression 16: cur == end == 0 right after the start is not ready."""
    vm.snapshot()
    vm.writes_on()
    request = vm.merge(0)
    with pytest.raises(errors.JobFailed):
        agent.ask("pivot", request)
    agent.ask("start_commit", {**request, "bandwidth": MIB})
    with pytest.raises(errors.VmWrongState):
        agent.ask("pivot", request)
    vm.writes_on()


def test_a_cancelled_merge_leaves_the_chain_and_refuses_late_asks(agent: Agent, vm: Vm) -> None:
    request = ready_active_commit(vm)
    vm.cancel(request)
    facts = vm.look()
    assert facts["qemu"]["job"] is None
    assert facts["qemu"]["chain"] == facts["libvirt"]["chain"] == vm.volumes[0][::-1]
    for method, more in (("start_commit", {"bandwidth": 0}), ("pivot", {})):
        with pytest.raises(errors.StaleClaim):
            agent.ask(method, {**request, **more})
    wait.until("the end to be told", lambda: told_statuses(agent)[-1] == "cancelled", 10)
    vm.number += 1
    vm.commit(0)
    vm.wait_ready()


def test_an_owner_that_slept_through_its_lease_is_refused(agent: Agent, vm: Vm) -> None:
    vm.snapshot()
    old = vm.merge(0)
    vm.number = 7
    agent.ask("look_disk", {"vm_id": vm.id, "disk": vm.disks[0], "claim": vm.claim})
    with pytest.raises(errors.StaleClaim) as stale:
        agent.ask("start_commit", {**old, "bandwidth": 0})
    assert (stale.value.fields["claim"], stale.value.fields["highest"]) == (1, 7)
    agent.kill()
    agent.start()
    with pytest.raises(errors.StaleClaim):
        agent.ask("start_commit", {**old, "bandwidth": 0})


def test_a_volume_that_somebody_else_refers_to_is_not_merged(agent: Agent, vm: Vm) -> None:
    vm.snapshot()
    vm.snapshot()
    stranger = vm.folder() / "backup.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", vm.volumes[0][1], "-F", "qcow2", str(stranger)]
    subprocess.run([*words, "256M"], check=True)
    with pytest.raises(errors.VolumeInUse, match=r"backup\.qcow2"):
        vm.commit(0)
    stranger.unlink()
    vm.wait_merged(vm.commit(0))


def test_a_vm_starts_from_the_leaf_that_the_storage_names_or_not_at_all(agent: Agent, vm: Vm) -> None:
    vm.power_off()
    with pytest.raises(errors.ChainDiffers):
        agent.ask("start_vm", vm.spec(leaf=new_id()))
    agent.ask("start_vm", vm.spec(leaf=vm.volumes[0][0]))


def test_a_backing_file_outside_the_domain_is_refused_at_start(agent: Agent, vm: Vm, folder: Path) -> None:
    vm.power_off()
    foreign = folder / "foreign.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(foreign), "256M"], check=True)
    leaf = vm.folder() / vm.volumes[0][0]
    subprocess.run(["qemu-img", "rebase", "-u", "-b", str(foreign), "-F", "qcow2", str(leaf)], check=True)
    with pytest.raises((errors.BackingOutside, errors.ChainBroken)):
        agent.ask("start_vm", vm.spec())


def test_a_snapshot_of_a_vm_that_is_down_is_taken_offline(agent: Agent, vm: Vm) -> None:
    vm.power_off()
    vm.snapshot()
    assert vm.leaf() == vm.volumes[0][-1]
    vm.start()
    assert vm.look()["qemu"]["chain"] == vm.volumes[0][::-1]


def test_a_snapshot_that_must_be_quiesced_fails_without_a_guest_agent(agent: Agent, vm: Vm) -> None:
    new = new_id()
    volume = {"disk": vm.disks[0], "volume_id": new, "parent_id": vm.volumes[0][0], "capacity": 256 * MIB}
    agent.ask("create_volume", volume)
    entry = {"disk": vm.disks[0], "volume_id": new, "parent_id": vm.volumes[0][0]}
    request = {"vm_id": vm.id, "disks": [entry], "quiesce": "required", "claim": vm.claim}
    with pytest.raises(errors.QuiesceFailed):
        agent.ask("switch_leaves", request)
    assert vm.look()["qemu"]["chain"] == [vm.volumes[0][0]]
    agent.ask("switch_leaves", {**request, "quiesce": "auto"})
    assert vm.look()["qemu"]["chain"][0] == new


def test_a_vm_with_every_kind_of_device_starts(agent: Agent, make_vm: Callable[..., Vm]) -> None:
    vm = make_vm(disks=3)
    disks = [{"disk": disk, "bus": bus} for disk, bus in zip(vm.disks, ("scsi", "sata", "virtio"), strict=True)]
    nics = [
        {"id": new_id(), "mac": "56:6f:1a:00:00:01", "model": "virtio"},
        {"id": new_id(), "mac": "56:6f:1a:00:00:02", "model": "e1000", "linked": False},
    ]
    spec = {**vm.spec(), "boot": None, "display": "vnc", "disks": disks, "nics": nics, "name": "a & <b>", "cpus": 2}
    assert agent.ask("start_vm", spec)["state"] == "running"
    for disk in range(3):
        facts = vm.look(disk)
        assert facts["qemu"]["chain"] == facts["libvirt"]["chain"] == vm.volumes[disk]
    vm.snapshot()
    for disk in range(3):
        request = vm.commit(0, disk)
        vm.wait_ready(disk)
        agent.ask("pivot", request)
        vm.finish(request, disk)


def test_a_guest_shuts_down_by_its_button(agent: Agent, vm: Vm) -> None:
    agent.ask("shut_down_vm", {"vm_id": vm.id})
    wait.until("the VM to be down", lambda: agent.ask("look_vm", {"vm_id": vm.id})["state"] == "down", 40)
    assert vm.check().ok, vm.check().summary()
    wait.until("it to be told", lambda: agent.news[-1][1].get("state") == "down", 10)


@pytest.mark.parametrize("point", ["switch.before_ask", "switch.after_ask", "switch.after_create"])
def test_a_snapshot_goes_forward_after_the_agent_died_in_it(agent: Agent, vm: Vm, point: str) -> None:
    agent.crash_at(point)
    new = new_id()
    volume = {"disk": vm.disks[0], "volume_id": new, "parent_id": vm.volumes[0][0], "capacity": 256 * MIB}
    agent.ask("create_volume", volume)
    entry = {"disk": vm.disks[0], "volume_id": new, "parent_id": vm.volumes[0][0]}
    request = {"vm_id": vm.id, "disks": [entry], "claim": vm.claim}
    with pytest.raises(errors.NoAnswer):
        agent.ask("switch_leaves", request)
    agent.wait_crashed()
    agent.start()
    agent.ask("switch_leaves", request)
    assert vm.look()["qemu"]["chain"][0] == new
    vm.volumes[0].append(new)
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


@pytest.mark.parametrize("point", ["commit.before_ask", "commit.after_ask", "commit.after_begin"])
def test_a_commit_is_begun_or_adopted_after_the_agent_died_in_it(agent: Agent, vm: Vm, point: str) -> None:
    vm.snapshot()
    vm.writes_on()
    agent.crash_at(point)
    with pytest.raises(errors.NoAnswer):
        vm.commit(0)
    agent.wait_crashed()
    agent.start()
    request = vm.commit(0)
    vm.wait_ready()
    agent.ask("pivot", request)
    vm.finish(request)
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_a_libvirtd_that_restarts_touches_no_guest(agent: Agent, vm: Vm) -> None:
    pid = agent.host.qemu_pid(f"vm-{vm.id}")
    agent.host.stop_libvirtd()
    wait.until("libvirt to be missed", lambda: agent.beat()["problem"] is not None, 10)
    assert [one["vm_id"] for one in agent.beat()["vms"]] == [vm.id]
    with pytest.raises(errors.HypervisorAway):
        agent.ask("power_off_vm", {"vm_id": vm.id})
    agent.host.start_libvirtd()
    wait.until("libvirt to be back", lambda: agent.beat()["problem"] is None, 30)
    assert vm.running()
    assert agent.host.qemu_pid(f"vm-{vm.id}") == pid
