"""What is wrong with a host's set-up for leases is said with file and option."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.hostagent import lock_setup

GOOD = {
    "qemu.conf": 'lock_manager = "sanlock"\n',
    "qemu-sanlock.conf": "auto_disk_leases=0\nrequire_lease_for_disks=0\n",
}


def faults(etc: Path, **changed: str) -> str:
    files = {**GOOD, **{name.replace("__", "-") + ".conf": text for name, text in changed.items()}}
    for name, text in files.items():
        (etc / name).write_text(text)
    fault = lock_setup.files_fault(etc)
    return f"{fault.reason}: {fault.advice}" if fault else ""


def test_right_files_have_no_fault(tmp_path: Path) -> None:
    assert faults(tmp_path) == ""


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"qemu": '#lock_manager = "sanlock"\n'}, "lock_manager is not set"),
        ({"qemu": 'lock_manager = "lockd"\n'}, "lock_manager is 'lockd'"),
        ({"qemu": ""}, 'Write lock_manager = "sanlock" there and restart libvirtd.'),
        ({"qemu__sanlock": "require_lease_for_disks = 0\n"}, "auto_disk_leases is not 0"),
        ({"qemu__sanlock": "auto_disk_leases = 0\n"}, "require_lease_for_disks is not 0"),
    ],
)
def test_a_wrong_file_is_named_with_its_option(tmp_path: Path, changed: dict[str, str], says: str) -> None:
    assert says in faults(tmp_path, **changed)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    fault = lock_setup.files_fault(tmp_path)
    assert fault
    assert str(tmp_path / "qemu.conf") in fault.reason


def test_a_sanlock_that_nothing_keeps_from_a_second_start_is_refused(tmp_path: Path) -> None:
    fault = lock_setup.guard_fault(tmp_path / "sanlock-unclean")
    assert fault
    assert "twice in one boot" in fault.reason
    assert "drystone.conf" in fault.advice
    (tmp_path / "sanlock-unclean").touch()
    assert lock_setup.guard_fault(tmp_path / "sanlock-unclean") is None


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    fault = lock_setup.plugin_fault((f"{tmp_path}/*/sanlock.so",))
    assert fault
    assert fault.advice == "Install libvirt-sanlock there."


@pytest.mark.parametrize("name", ["", "host1", socket.gethostname(), "23C868B4-6C9F-4B79-9278-DADA392C484A"])
def test_a_name_that_is_not_the_hosts_own_uuid_is_refused(name: str) -> None:
    fault = lock_setup.daemon_fault(f"daemon x\n    our_host_name={name}\n    use_watchdog=0\n")
    assert fault
    assert "our_host_name" in fault.advice


def test_a_uuid_of_its_own_is_right_and_a_daemon_that_is_silent_is_not() -> None:
    assert lock_setup.daemon_fault("    our_host_name=23c868b4-6c9f-4b79-9278-dada392c484a\n") is None
    assert lock_setup.daemon_fault(None)
