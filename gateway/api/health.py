"""GET /health: who answers on the bus."""

from __future__ import annotations

import time
from typing import Any

from contracts import errors, inventory, snapshots
from contracts.promise import Rpc
from gateway.api.door import Caller, ask

# Any cheap question will do: the answer proves the way there, the service and its database.
PROBES: dict[str, tuple[Rpc, dict[str, Any]]] = {
    "inventory": (inventory.list_hosts, {"limit": 1000}),
    "snapshots": (snapshots.list_jobs, {"limit": 1}),
}
PATIENCE = 3.0  # seconds for each


def look(bus: Caller) -> dict[str, Any]:
    """`status` is ok when all services answer and all hosts are up."""
    services, replies = [], {}
    for name, (promise, request) in PROBES.items():
        started = time.monotonic()
        try:
            replies[name] = ask(bus, promise, promise.load_request(request), PATIENCE)
            problem = None
        except errors.Problem as fault:
            problem = str(fault)
        milliseconds = round((time.monotonic() - started) * 1000, 1)
        services.append({"name": name, "answers": problem is None, "problem": problem, "milliseconds": milliseconds})
    hosts = [_host(row) for row in replies.get("inventory", {}).get("items", [])]
    well = all(one["answers"] for one in services) and all(host["state"] == "up" for host in hosts)
    return {"status": "ok" if well else "degraded", "services": services, "hosts": hosts}


def _host(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "name", "state", "problem", "last_seen")}
