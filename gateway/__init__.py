"""The front door: HTTP API and event stream. Owns no data."""
