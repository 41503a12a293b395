"""The agent of one host: the only code that touches libvirt, QEMU and mounted storage."""
