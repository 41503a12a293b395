"""Whether KVM really works here: asked once. A /dev/kvm that exists may still not boot an ordinary kernel (seen)."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile

_EXIT = 33  # isa-debug-exit turns the byte 0x10 into exit status (0x10 << 1) | 1
# mov dx,0xf4; mov al,0x10; out dx,al; hlt
_SECTOR = bytes([0xBA, 0xF4, 0x00, 0xB0, 0x10, 0xEE, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"
_PROBE_SECONDS = 20.0


@functools.cache
def kvm(choice: str, emulator: str) -> bool:
    """`choice`: kvm, tcg or auto. auto needs the processor's own virtualisation (without it something emulates
    KVM, and ordinary kernels hung) and a boot sector that runs."""
    if choice != "auto":
        return choice == "kvm"
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and _processor_can() and _boots(emulator)


def _processor_can() -> bool:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        return re.search(r"^flags\s*:.*\b(vmx|svm)\b", file.read(), re.MULTILINE) is not None


def _boots(emulator: str) -> bool:
    with tempfile.NamedTemporaryFile() as disk:
        disk.write(_SECTOR)
        disk.flush()
        words = [emulator, "-accel", "kvm", "-machine", "pc", "-m", "64", "-display", "none", "-nodefaults"]
        words += ["-no-user-config", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        words += ["-drive", f"file={disk.name},format=raw,if=ide,read-only=off"]
        try:
            done = subprocess.run(words, capture_output=True, timeout=_PROBE_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == _EXIT
