"""What a person runs: set-up, the private stack of tests and demo, the writing guest."""
