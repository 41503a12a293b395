"""The guest of demo, tests and benchmarks: it writes stamped blocks without pause and says what is safe on disk."""
