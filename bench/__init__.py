"""Benchmarks: every line sets ours beside the plain thing, measured in turns in one run, and prints the ratio."""
