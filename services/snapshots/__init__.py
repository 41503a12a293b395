"""Snapshots, volume chains, merges and removals."""
