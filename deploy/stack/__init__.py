"""A whole Drystone on one machine: broker, services and hosts, each in a room that leaves nothing behind."""
