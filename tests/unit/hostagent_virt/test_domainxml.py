"""The XML of a domain, held against libvirt's own schema where it is installed."""

import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as some

from contracts import hostagent
from services.hostagent import domainxml

VM = "aaaaaaaa-0000-4000-8000-000000000001"
NIC = "bbbbbbbb-0000-4000-8000-000000000001"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
DOMAIN = {"id": "eeeeeeee-0000-4000-8000-000000000001", "path": "/mnt/d1"}


def disk_id(number: int) -> str:
    return f"dddddddd-0000-4000-8000-{number:012d}"


def spec(**changes: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = hostagent.VmSpec().load(
        {
            "id": VM,
            "name": "web & <db>",
            "memory": 256 * 2**20,
            "cpus": 2,
            "firmware": "bios",
            "display": "vnc",
            "boot": {"kernel": "/boot/k", "initrd": "/boot/i", "cmdline": "a=1", "serial_log": "/var/log/s"},
            "disks": [disk(1, "virtio", boot_order=1), disk(2, "scsi"), disk(3, "sata", read_only=True)],
            "nics": [{"id": NIC, "mac": "56:6f:1a:00:00:01", "model": "virtio"}],
            **changes,
        }
    )
    return loaded


def disk(number: int, bus: str, **more: Any) -> dict[str, Any]:
    return {"disk": {"disk_id": disk_id(number), "domain": DOMAIN}, "bus": bus, **more}


def build(one: dict[str, Any], *, kvm: bool = False) -> str:
    leaves = {
        entry["disk"]["disk_id"]: {"path": f"/mnt/d1/{i}", "format": "cow", "io": "threads", "variables": f"/v/{i}"}
        for i, entry in enumerate(one["disks"])
    }
    return domainxml.build(one, leaves, monitor="/run/m", kvm=kvm, emulator="/usr/bin/qemu-system-x86_64")


@pytest.mark.parametrize("kvm", [False, True])
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_libvirts_schema_takes_it(tmp_path: Path, kvm: bool, firmware: str) -> None:
    file = tmp_path / "vm.xml"
    file.write_text(build(spec(firmware=firmware), kvm=kvm))
    words = ["xmllint", "--noout", "--relaxng", str(SCHEMA), str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("orders", "boots"), [((None, None), 0), ((None, 2), 1), ((2, 1), 1)])
def test_uefi_variables_lie_beside_the_disk_that_is_booted_from(orders: tuple[int | None, ...], boots: int) -> None:
    disks = [disk(i + 1, "virtio", boot_order=order) for i, order in enumerate(orders)]
    assert ET.fromstring(build(spec(firmware="uefi", disks=disks))).findtext("os/nvram") == f"/v/{boots}"


def test_disks_have_stable_targets_and_their_id_as_alias() -> None:
    root = ET.fromstring(build(spec()))
    found = [(d.find("target").get("dev"), d.find("alias").get("name")) for d in root.iter("disk")]  # type: ignore[union-attr]
    assert found == [("vda", f"ua-{disk_id(1)}"), ("sda", f"ua-{disk_id(2)}"), ("sdb", f"ua-{disk_id(3)}")]
    assert domainxml.disk_of(found[0][1]) == disk_id(1)


def test_a_disk_names_its_leaf_and_no_chain() -> None:
    root = ET.fromstring(build(spec()))
    assert root.find(".//backingStore") is None
    driver = root.find(".//disk/driver")
    assert driver is not None
    assert {k: driver.get(k) for k in ("cache", "io", "discard", "error_policy")} == {
        "cache": "none",
        "io": "threads",
        "discard": "unmap",
        "error_policy": "stop",
    }


def test_the_console_of_vnc_listens_on_loopback_only() -> None:
    graphics = ET.fromstring(build(spec())).find(".//graphics")
    assert graphics is not None
    assert graphics.get("listen") == "127.0.0.1"
    assert ET.fromstring(build(spec(display="none"))).find(".//graphics") is None


def test_qemu_gets_a_second_monitor() -> None:
    line = ET.fromstring(build(spec())).find(f"{{{domainxml.QEMU_NS}}}commandline")
    assert line is not None
    words = [arg.get("value") for arg in line]
    assert words == [
        "-chardev",
        "socket,id=drystone,path=/run/m,server=on,wait=off",
        "-mon",
        "chardev=drystone,mode=control",
    ]


@pytest.mark.parametrize("alias", [None, "", "virtio-disk0", "ua-", "ua-NOT-A-UUID", "ua-{}", disk_id(1) + "x"])
def test_a_foreign_alias_is_no_disk_of_ours(alias: str | None) -> None:
    assert domainxml.disk_of(alias) is None


@given(some.integers(1, 800))
def test_target_names_never_repeat(count: int) -> None:
    names = domainxml.targets([{"bus": "virtio"}] * count)
    assert len(set(names)) == count
    assert names[0] == "vda"
    assert count < 27 or names[26] == "vdaa"


@given(some.text(some.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=50))
def test_a_name_that_people_give_cannot_break_the_xml(name: str) -> None:
    assert ET.fromstring(build(spec(name=name))).findtext("title") == name


def test_a_lease_is_named_with_its_place_on_the_storage() -> None:
    lease = {"lockspace": "ls", "key": "vm", "path": "/mnt/d1/dom_md/xleases", "offset": 3145728}
    text = domainxml.build(spec(disks=[]), {}, monitor="/run/m", kvm=False, emulator="/usr/bin/q", lease=lease)
    element = ET.fromstring(text).find("devices/lease")
    assert element is not None
    assert (element.findtext("lockspace"), element.findtext("key")) == ("ls", "vm")
    assert element.find("target").attrib == {"path": "/mnt/d1/dom_md/xleases", "offset": "3145728"}
    assert ET.fromstring(build(spec())).find("devices/lease") is None


def test_a_vm_without_disks_has_no_uefi_variables() -> None:
    root = ET.fromstring(build(spec(firmware="uefi", disks=[])))
    assert (root.find("os").get("firmware"), root.find("os/nvram")) == ("efi", None)


@pytest.mark.parametrize("boot", [None, {"initrd": "/boot/i"}, {"kernel": "/boot/k"}])
def test_only_what_is_given_is_booted_directly(boot: dict[str, str] | None) -> None:
    """An initial RAM disk without a kernel would be refused by libvirt."""
    system = ET.fromstring(build({**spec(), "boot": boot})).find("os")
    given = [name for name in ("kernel", "initrd", "cmdline") if system.find(name) is not None]
    assert given == (["kernel"] if boot and "kernel" in boot else [])


def test_without_a_log_the_serial_line_is_a_terminal() -> None:
    serial = ET.fromstring(build({**spec(), "boot": None})).find("devices/serial")
    assert (serial.get("type"), serial.find("source")) == ("pty", None)


@pytest.mark.parametrize(("network", "kind"), [(None, "user"), ("net1", "network")])
@pytest.mark.parametrize("linked", [True, False])
def test_a_nic_is_on_its_network_and_may_be_unplugged(network: str | None, kind: str, linked: bool) -> None:
    nic = {"id": NIC, "mac": "56:6f:1a:00:00:01", "model": "virtio", "network": network, "linked": linked}
    found = ET.fromstring(build({**spec(), "nics": [nic]})).find("devices/interface")
    source, link = found.find("source"), found.find("link")
    assert (found.get("type"), None if source is None else source.get("network")) == (kind, network)
    assert (None if link is None else link.get("state")) == (None if linked else "down")
