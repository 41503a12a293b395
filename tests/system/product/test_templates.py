"""Templates on real machines: thin VMs and a clone write at once, and the template's file stays byte for byte."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.errors import ApiError, Unreachable
from contracts import errors, hostagent
from deploy.guest import image
from deploy.stack import wait
from deploy.world import Machine, World
from tests.fakes.bus import Bus
from tests.system.product import spoil

pytestmark = pytest.mark.lab
VmOf = Callable[..., Machine]
POINTS = [
    "volume.create.after_intent",
    "volume.copy.converted",
    "volume.create.before_image",
    "volume.create.after_image",
    "volume.create.after_lease",
    "volume.create.after_meta",
]
THIN_POINTS = ["volume.thin.linked.data", "volume.thin.linked.meta", "volume.create.after_image"]


def template_of(world: World, origin: Machine, name: str, key: str | None = None) -> dict[str, Any]:
    """Made from a VM that is down, with all its disks copied."""
    made = world.api.templates.create({"name": name, "vm_id": origin.id}, key)
    return ready(world, made["id"])


def ready(world: World, template_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        try:
            seen = dict(world.api.templates.get(template_id))
        except (ApiError, Unreachable):
            return None
        assert seen["state"] != "failed", seen
        return seen if seen["state"] == "ok" else None

    return wait.until("the template", look, 180)


def vm_from(world: World, origin: Machine, template: dict[str, Any], name: str, clone: str) -> Machine:
    """A VM of its own console that goes on where the origin's guest stopped."""
    log = world.stack.folder / f"{name}.console"
    boot = {**origin.boot, "cmdline": image.cmdline(**origin.options), "serial_log": str(log)}
    body = {"name": name, "cluster_id": world.cluster_id, "template_id": template["id"], "clone": clone, "boot": boot}
    made = world.api.vms.create(body)
    vm = [*world.api.watch_copies(made["id"], world.api.vms, 180)][-1]
    assert [disk["state"] for disk in vm["disks"]] == ["ok"], vm
    return Machine(world.api, vm["id"], [vm["disks"][0]["id"]], log, origin.domain, boot, dict(origin.options))


class Base:
    """A template's volume: its data, its metadata and its lease, as they were."""

    def __init__(self, origin: Machine, template: dict[str, Any]) -> None:
        (disk,) = template["disks"]
        self.disk_id, self.volume_id = disk["id"], disk["first_volume_id"]
        self.folder = origin.domain / "images" / self.disk_id
        self._before = self._now()

    def _now(self) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(self.folder.iterdir())}

    def links(self) -> int:
        return (self.folder / self.volume_id).stat().st_nlink

    def assert_unchanged(self) -> None:
        assert self._now() == self._before
        assert len(self._before) == 3


def assert_whole(vm: Machine, snapshots: int, base: Base | None) -> None:
    """Down, every acknowledged block reads back, and no file is left behind; the template's own stays out of it."""
    vm.wait_for_writes(64)
    vm.power_off()
    result = vm.check()
    assert result.ok, result.summary()
    own = {volume["volume_id"] for volume in vm.chain()}
    assert vm.files() == own | ({base.volume_id} if base else set())
    assert len(own) == snapshots + 1
    vm.start(check=True)  # the guest itself reads everything first
    assert vm.acks().findings() == []


def test_thin_vms_and_a_clone_run_at_once_on_a_template(world: World, writing_vm: VmOf) -> None:
    origin = writing_vm()
    origin.snapshot("below")  # the copy holds the whole chain
    origin.wait_for_writes(256)
    origin.power_off()
    template = template_of(world, origin, "golden")
    base = Base(origin, template)
    machines = [vm_from(world, origin, template, f"web{number}", "thin") for number in (1, 2)]
    machines.append(vm_from(world, origin, template, "web3", "full"))
    assert base.links() == 3
    for vm in machines:
        vm.start(check=True)
        assert vm.acks().disks[0].read_back > 0
        assert vm.acks().findings() == []
    origin.start()  # and so does the VM that it was made from
    taken = {vm.id: [vm.snapshot(name) for name in ("oldest", "newest")] for vm in machines}
    for vm in machines:
        vm.wait_for_writes(256)
        merge_into_the_template_is_refused(world, vm, base)
        assert vm.remove(taken[vm.id][0])["state"] == "done"  # into the VM's own first volume
        assert vm.remove(taken[vm.id][1])["state"] == "done"
    a_branch_is_named(vm=machines[0])
    for vm, own in zip(machines, (base, base, None), strict=True):
        assert_whole(vm, 0, own)
    base.assert_unchanged()
    deleted_in_order(world, template, base, machines)


def merge_into_the_template_is_refused(world: World, vm: Machine, base: Base) -> None:
    """Whoever asks the agent, and whatever they call it."""
    host = next(iter(world.stack.hosts.values()))
    disk = {"disk_id": vm.disks[0], "domain": {"id": world.domain_id, "path": str(vm.domain.parent)}}
    first, second = (volume["volume_id"] for volume in vm.chain()[:2])
    if base.volume_id not in vm.files():
        return
    ask = {"vm_id": vm.id, "disk": disk, "base_id": base.volume_id, "top_id": first, "child_id": second}
    claim = {"flow_id": str(uuid.uuid4()), "number": 1}
    with Bus(world.stack.rabbitmq.uri) as bus, pytest.raises(errors.TemplateVolume, match=base.disk_id) as refused:
        bus.call(hostagent.start_commit, {**ask, "claim": claim}, host.id)
    assert "Nothing was touched" in str(refused.value)
    assert "--clone full" in refused.value.advice
    base.assert_unchanged()


def a_branch_is_named(vm: Machine) -> None:
    """A volume that something else stands on is not merged into."""
    snapshot = vm.snapshot("branched")
    below = vm.chain()[0]["volume_id"]
    branch = vm.folder() / "branch.qcow2"
    spoil.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", vm.folder() / below, "-F", "qcow2", branch, "256M")
    spoil.undone(vm, vm.api.remove_snapshot(snapshot), "volume_in_use", "branch.qcow2")
    branch.unlink()
    assert vm.remove(snapshot)["state"] == "done"


def deleted_in_order(world: World, template: dict[str, Any], base: Base, machines: list[Machine]) -> None:
    """The template outlives its thin VMs, and the clone outlives the template."""

    def delete() -> None:
        world.api.templates.delete(template["id"], world.api.templates.get(template["id"])["version"])

    spoil.refused(delete, 409, "still_in_use", "vm web1, vm web2")
    for vm in machines[:2]:
        vm.power_off()
        world.api.vms.delete(vm.id, world.api.vms.get(vm.id)["version"])
    base.assert_unchanged()
    assert base.links() == 1
    delete()
    assert not base.folder.exists()
    machines[2].wait_for_writes(64)
    assert_whole(machines[2], 0, None)
    machines[2].power_off()


def test_a_vm_that_runs_is_no_templates_source(world: World, writing_vm: VmOf) -> None:
    vm = writing_vm()
    spoil.refused(lambda: template_of(world, vm, "hot"), 409, "vm_wrong_state", "down")
    assert list(world.api.templates.all(name="hot")) == []


def with_crash(world: World, point: str, ask: Callable[[], object]) -> None:
    """The agent dies at a crash point of what is asked for, and is started again."""
    agent = world.stack.process("h1.agent")
    agent.crash_at(point)

    def tolerant() -> None:
        with contextlib.suppress(ApiError, Unreachable):
            ask()

    asking = threading.Thread(target=tolerant)
    asking.start()
    wait.until(f"the agent to die at {point}", agent.crashed, 60, every=0.02)
    agent.kill()  # its child died at the point; now all of it
    wait.until("the end of the agent", lambda: not agent.alive(), 10)
    agent.start()
    world.wait_for_host(next(iter(world.stack.hosts.values())).id)
    asking.join(180)


@pytest.mark.chaos
@pytest.mark.parametrize("point", POINTS)
def test_the_agent_dies_at_a_crash_point_of_the_copy(world: World, writing_vm: VmOf, point: str) -> None:
    origin, key = writing_vm(), str(uuid.uuid4())
    origin.power_off()
    name = f"t-{key[:8]}"
    with_crash(world, point, lambda: world.api.templates.create({"name": name, "vm_id": origin.id}, key))
    template = template_of(world, origin, name, key)
    base = Base(origin, template)
    web = vm_from(world, origin, template, f"web-{key[:8]}", "thin")
    web.start(check=True)
    assert_whole(web, 0, base)
    base.assert_unchanged()
    web.power_off()
    gone(world, web, template)


@pytest.mark.chaos
@pytest.mark.parametrize("point", THIN_POINTS)
def test_the_agent_dies_at_a_crash_point_of_a_thin_disk(world: World, writing_vm: VmOf, point: str) -> None:
    origin, key = writing_vm(), str(uuid.uuid4())
    origin.power_off()
    template = template_of(world, origin, f"t-{key[:8]}")
    base = Base(origin, template)
    with_crash(world, point, lambda: vm_from(world, origin, template, f"lost-{key[:8]}", "thin"))
    lost = next(iter(world.api.vms.all(name=f"lost-{key[:8]}")), None)
    if lost is not None:  # else its request was undone
        wait.until("its disk", lambda: world.api.vms.get(lost["id"])["disks"][0]["state"] == "ok", 180)
        world.api.vms.delete(lost["id"], world.api.vms.get(lost["id"])["version"])
    base.assert_unchanged()
    assert base.links() == 1
    web = vm_from(world, origin, template, f"web-{key[:8]}", "thin")
    web.start(check=True)
    assert_whole(web, 0, base)
    web.power_off()
    gone(world, web, template)


def gone(world: World, web: Machine, template: dict[str, Any]) -> None:
    world.api.vms.delete(web.id, world.api.vms.get(web.id)["version"])
    world.api.templates.delete(template["id"], world.api.templates.get(template["id"])["version"])
    assert not Path(web.domain, "images", template["disks"][0]["id"]).exists()
