"""Backing file names that grew under other tools: a start makes them bare, and no long one is ever written."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from contracts import errors
from tests.system.hostagent.lab import Vm

pytestmark = pytest.mark.lab


def lengthen(vm: Vm, times: int) -> list[str]:
    """Every volume of a VM that is down names the one below it by a path that grew; answers its volumes."""
    volumes, folder = list(vm.volumes[0]), vm.folder()
    for upper, lower in zip(volumes[1:], volumes, strict=False):
        long = f"../{folder.name}/" * times + lower
        subprocess.run(["qemu-img", "rebase", "-u", "-b", long, "-F", "qcow2", upper], check=True, cwd=folder)
    return volumes


def backing_of(vm: Vm, volume: str) -> str:
    """The name in its header."""
    words = ["qemu-img", "info", "-U", "--output=json", str(vm.folder() / volume)]
    told = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return str(told["backing-filename"])


def test_backing_names_that_grew_are_made_bare_by_a_start_and_stay_so(vm: Vm) -> None:
    """Three layers go down in one job whose names together would have 996 bytes and more."""
    for _ in range(4):
        vm.snapshot()
    vm.power_off()
    volumes = lengthen(vm, 8)
    vm.start()
    assert [backing_of(vm, upper) for upper in volumes[1:]] == volumes[:-1]
    vm.writes_on()
    request = vm.commit(0, layers=3)
    vm.wait_merged(request)
    vm.finish(request)
    assert backing_of(vm, volumes[4]) == volumes[0]
    vm.writes_on()
    vm.power_off()
    assert vm.check().ok, vm.check().summary()


def test_a_backing_name_that_grows_too_long_while_the_vm_runs_is_refused(vm: Vm) -> None:
    """Somebody writes the headers of a running VM, through QEMU."""
    vm.snapshot()
    vm.snapshot()
    vm.snapshot()
    folder, volumes = vm.folder(), vm.volumes[0]
    files = [one for one in qemu(vm, "query-named-block-nodes", flat=True) if one["drv"] == "file"]
    nodes = {Path(one["file"]).name: one["node-name"].replace("storage", "format") for one in files}
    for upper, lower in zip(volumes[1:], volumes, strict=False):
        name = f"../{folder.name}/" * 12 + lower
        words = {"image-node-name": nodes[upper], "backing-file": name}
        qemu(vm, "change-backing-file", device=nodes[volumes[-1]], **words)
    for begin in (vm.commit, vm.pull):
        with pytest.raises(errors.BackingTooLong):
            begin(1)
    vm.writes_on()


def qemu(vm: Vm, command: str, **arguments: object) -> Any:
    said = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(vm.agent.host.virsh("qemu-monitor-command", f"vm-{vm.id}", said))["return"]
