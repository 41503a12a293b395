"""Python client of the HTTP API and the drystone command on top of it. Imports nothing else of ours."""
