"""The HTTP API: one module per family of resources, each a table of routes."""
