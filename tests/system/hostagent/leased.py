"""VMs with leases for tests on real sanlock, and what runs under their leases."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.stack import wait
from tests.system.hostagent.lab import ROOT, Agent, Vm


class LeasedVm(Vm):
    """A VM with a lease. All of them are on the one domain that `shared` names, which both hosts have joined."""

    shared: dict[str, Any] | None = None

    def _make_domain(self, path: Path) -> dict[str, Any]:
        return LeasedVm.shared or super()._make_domain(path)

    def lockspace(self, number: int) -> dict[str, Any]:
        return {"domain": self.domain, "sanlock_id": number, "io_timeout": 1}

    def leased(self, number: int) -> dict[str, Any]:
        return {**self.spec(), "lease": self.lockspace(number)}

    @property
    def xleases(self) -> Path:
        return Path(self.domain["path"]) / self.domain["id"] / "dom_md/xleases"


def start(agent: Agent, vm: LeasedVm, number: int) -> dict[str, Any]:
    return agent.ask("start_vm", vm.leased(number))


def state(agent: Agent, vm: LeasedVm) -> str:
    return str(agent.ask("look_vm", {"vm_id": vm.id})["state"])


def lockspaces(agent: Agent) -> dict[str, dict[str, Any]]:
    return {facts["domain_id"]: facts for facts in agent.beat()["lockspaces"]}


def wait_joined(agent: Agent, vm: LeasedVm) -> None:
    def joined() -> bool:
        return lockspaces(agent).get(vm.domain["id"], {}).get("state") == "joined"

    wait.until("the lockspace to be joined", joined, 60, every=0.2)


@contextlib.contextmanager
def hanging(agent: Agent, vm: LeasedVm, hang: str) -> Iterator[None]:
    """An agent one of whose native calls hangs ("resume:6": for 6 s); afterwards it is as before."""
    agent.kill()
    agent.env = {"DRYSTONE_TEST_HANG": hang}
    agent.start()
    wait_joined(agent, vm)
    try:
        yield
    finally:
        agent.kill()
        agent.env = {}
        agent.start()


def write_offline(agent: Agent, vm: LeasedVm, *command: str) -> str:
    """Run a command under the VM's lease on a host; what it printed, or the Problem's code."""
    program = (
        "import json, sys\n"
        "from contracts import errors\n"
        "from services.hostagent import sanlocks, under_lease\n"
        "domain, vm, command = json.loads(sys.argv[1])\n"
        "offset = sanlocks.ensure(domain, vm)['offset']\n"
        "try:\n"
        "    print(under_lease.start(domain, vm, offset, command).wait())\n"
        "except errors.Problem as problem:\n"
        "    print(problem.code, problem)\n"
    )
    order = json.dumps([vm.domain, vm.id, list(command)])
    env = ["env", f"PYTHONPATH={ROOT}"]
    return agent.host.run(*env, sys.executable, "-c", program, order).strip()
