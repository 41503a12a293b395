"""A VM of the writing guest as plain libvirt XML: for tests and benchmarks that go without Drystone."""

import subprocess
from pathlib import Path

from deploy.guest import image

# as the product defines its disks, so that benchmarks compare the work and not the settings
DISK = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='threads' discard='unmap'
        error_policy='stop' rerror_policy='stop'/>
      <source file='{path}'/><target dev='vd{letter}' bus='virtio'/>
    </disk>"""


def volume(path: Path, mib: int = 256, parent: str = "") -> Path:
    """Make an empty qcow2 volume; `parent` is the bare file name of the volume below it."""
    below = ["-b", parent, "-F", "qcow2"] if parent else []
    size = [] if parent else [f"{mib}M"]
    words = ["qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), *size]
    subprocess.run(words, check=True, timeout=60, cwd=path.parent)
    return path


def xml(name: str, disks: list[Path], serial_log: Path, guest: image.Image, cmdline: str, *, kind: str = "qemu") -> str:
    """The domain; `kind` is libvirt's: qemu (no hardware virtualisation needed) or kvm."""
    devices = "".join(DISK.format(path=path, letter=chr(ord("a") + i)) for i, path in enumerate(disks))
    return f"""\
<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{guest.kernel}</kernel><initrd>{guest.initrd}</initrd><cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}
    <serial type='file'><source path='{serial_log}' append='on'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""
