"""The services: each owns its data; they share promises, not code."""
