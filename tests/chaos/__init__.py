"""The death table: whatever dies, wherever, no acknowledged block is lost, nothing is left behind, the VM starts."""
