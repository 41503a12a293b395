"""The guest and its model on plain libvirt: the checker that all other proofs rest on must be able to fail."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.guest import image, model, plain, stall
from deploy.stack import wait
from deploy.stack.host import Host

pytestmark = pytest.mark.lab


class Writer:
    """A VM of the writing guest on plain libvirt, one disk."""

    def __init__(self, host: Host, folder: Path, guest: image.Image) -> None:
        self.host, self.folder, self.leaf = host, folder, plain.volume(folder / "v0.qcow2")
        self.log = folder / "vm1.serial"
        self.guest = guest

    def start(self) -> None:
        before = self.safe()
        definition = self.folder / "vm1.xml"
        definition.write_text(
            plain.xml("vm1", [self.leaf], self.log, self.guest, image.cmdline(ring_mib=16, check=True))
        )
        self.host.virsh("create", definition)
        self.writes_on(before)

    def safe(self) -> int:
        return model.read_log(self.log).safe() if self.log.exists() else 0

    def writes_on(self, above: int, count: int = 500) -> None:
        wait.until(f"{count} more acknowledged writes", lambda: self.safe() >= above + count, 60)

    def snapshot(self, name: str) -> None:
        self.leaf = plain.volume(self.folder / f"{name}.qcow2", parent=self.leaf.name)
        disk = f"vda,snapshot=external,file={self.leaf}"
        self.host.virsh(
            "snapshot-create-as", "vm1", "--no-metadata", "--disk-only", "--reuse-external", "--diskspec", disk
        )
        self.writes_on(self.safe())

    def commit_active_layer(self) -> None:
        self.host.virsh("blockcommit", "vm1", "vda", "--active", "--shallow", "--pivot", "--wait", seconds=120)
        self.leaf = self.folder / "v0.qcow2"

    def power_cut(self) -> None:
        pid = self.host.qemu_pid("vm1")
        os.kill(pid, signal.SIGKILL)
        # libvirt learns it from the closed monitor, a moment after the end
        wait.until("libvirt to notice", lambda: "vm1" not in self.host.virsh("list"), 10)

    def off(self) -> None:
        self.host.virsh("destroy", "vm1")

    def check(self) -> model.Result:
        return model.check_image(model.read_log(self.log), 0, self.leaf)


@pytest.fixture
def writer(host: Host, folder: Path, guest: image.Image) -> Writer:
    made = Writer(host, folder, guest)
    made.start()
    return made


def test_acknowledged_blocks_read_back_after_a_live_commit_with_pivot(writer: Writer) -> None:
    writer.snapshot("v1")
    with stall.Watch(writer.log) as watch:
        writer.commit_active_layer()
        writer.writes_on(writer.safe())
    writer.off()
    assert writer.check().ok, writer.check().summary()
    assert watch.longest_ms() > 0


def test_a_guest_that_lost_its_power_goes_on_above_what_it_acknowledged(writer: Writer) -> None:
    writer.power_cut()
    assert writer.check().ok, writer.check().summary()
    writer.start()
    writer.off()
    boots = model.read_log(writer.log).disks[0].boots
    assert len(boots) == 2
    assert boots[1].first > boots[0].safe
    assert writer.check().ok, writer.check().summary()


def test_a_button_pressed_from_outside_turns_the_guest_off(writer: Writer) -> None:
    writer.host.virsh("shutdown", "vm1")
    wait.until("the guest to be off", lambda: "vm1" not in writer.host.virsh("list"), 30)
    assert writer.check().ok, writer.check().summary()


def test_the_model_finds_one_damaged_block(writer: Writer) -> None:
    writer.off()
    subprocess.run(["qemu-io", "-c", "write -P 0x5a 40k 512", str(writer.leaf)], check=True, capture_output=True)
    result = writer.check()
    assert not result.ok
    assert result.damaged == ["block 10 holds neither a stamp of this block nor nothing"]


def test_the_model_finds_what_an_overlay_dropped_by_mistake_held(writer: Writer) -> None:
    writer.snapshot("v1")
    writer.off()
    writer.leaf = writer.folder / "v0.qcow2"
    result = writer.check()
    assert not result.ok
    assert result.lost
    assert not result.damaged


def test_a_host_sees_its_own_processes_only(two_hosts: tuple[Host, Host], folder: Path) -> None:
    first, second = two_hosts
    assert [one.virsh("hostname").strip() for one in two_hosts] == ["h1", "h2"]
    first.spawn("sleeper", ["sleep", "1234567"])
    assert "1234567" in first.run("ps", "-e", "-o", "args=")
    assert "1234567" not in second.run("ps", "-e", "-o", "args=")
