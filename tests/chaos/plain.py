"""Requests that are no jobs: starts and stops, disks, templates and storage domains."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from client.errors import ApiError
from deploy.world import Machine
from tests.chaos.operations import Operation

MIB = 2**20


class Plain(Operation):
    """A request that is no job: it is over when the world is so, and asked again it finds that."""

    def end(self, job_id: str) -> Mapping[str, Any]:
        def look() -> bool:
            return self.over(job_id) or (self._insist() and self.over(job_id))

        self.place.until(f"the end of: {self.plan.operation}", look, 90)
        return {"id": job_id, "state": "done", "reason": None}

    def _insist(self) -> bool:
        """Whoever learnt nothing asks again."""
        time.sleep(1)
        self.ask("")
        return True


class Start(Plain):
    """The VM is started."""

    def arrange(self) -> None:
        self.place.vm.power_off()

    def ask(self, key: str) -> str:
        self.place.api.start_vm(self.place.vm.id, self.place.host.id)
        return "start"

    def over(self, job_id: str) -> bool:
        return self.place.vm.state() in ("running", "down")

    def end(self, job_id: str) -> Mapping[str, Any]:
        state = self.place.settled(self.place.vm)
        reason = {"code": "vm_stopped", "message": "The VM is down again."}
        return {"id": job_id, "state": "done" if state == "running" else "undone", "reason": reason}

    def repeat(self) -> None:
        self.place.running(self.place.vm)


class Stop(Plain):
    """The VM is powered off, or asked to shut down."""

    def ask(self, key: str) -> str:
        down = self.place.vm.state() == "down"
        if not down and "shutting_down" in self.plan.point:
            self.place.api.shut_down_vm(self.place.vm.id)
        elif not down:
            self.place.api.power_off_vm(self.place.vm.id)
        return "stop"

    def over(self, job_id: str) -> bool:
        return self.place.vm.state() == "down"


class Aside(Plain):
    """Of something that no VM of the place has. Where hosts and their guests are hurt, their disks are held to the
    model all the same; the death of a service does nothing to them."""

    @property
    def touched(self) -> tuple[Machine, ...]:
        return super().touched if self.plan.victim in ("agent", "libvirtd", "qemu", "host") else ()


class FirstStart(Aside):
    """A VM that never ran is started: its lease is made."""

    def arrange(self) -> None:
        name = f"first-{self.plan.seed}-{time.time_ns()}"
        self.new = self.place.world.machine(name, mib=64)
        self.place.world.machines.remove(self.new)

    def ask(self, key: str) -> str:
        self.place.api.start_vm(self.new.id, self.place.host.id)
        return "start"

    def over(self, job_id: str) -> bool:
        return self.new.state() in ("running", "down")

    def end(self, job_id: str) -> Mapping[str, Any]:
        self.place.until("the new VM to run", self._runs, 200)
        return {"id": job_id, "state": "done", "reason": None}

    def _runs(self) -> bool:
        if self.place.settled(self.new) == "down":
            self.ask("")
        return self.new.state() == "running"

    def clean(self) -> None:
        self.new.power_off()
        api, row = self.place.api, self.place.api.vms.get(self.new.id)
        api.vms.delete(row["id"], row["version"])
        assert not [one["id"] for one in api.disks.all() if one["id"] in self.new.disks], "its disks are left behind"
        index = (self.place.vm.domain / "dom_md/xleases").read_bytes()
        assert self.new.id.encode() not in index[MIB : 2 * MIB], "its lease is left behind"


class MakeDisk(Aside):
    """A disk is made; afterwards it is deleted, and nothing is left of it."""

    def arrange(self) -> None:
        alias = f"new-{self.plan.seed}-{time.time_ns()}"
        self.body = {"alias": alias, "domain_id": self.place.spare, "capacity": MIB}
        self.key = str(uuid.uuid4())

    def ask(self, key: str) -> str:
        self.row = self.place.api.disks.create(self.body, self.key)
        return "make"

    def over(self, job_id: str) -> bool:
        return self.place.api.disks.get(self.row["id"])["state"] == "ok"

    def clean(self) -> None:
        row = self.place.api.disks.get(self.row["id"])
        self.place.api.disks.delete(row["id"], row["version"])


class Template(Aside):
    """A template is made from the VM that is down: its disk is copied. Afterwards it is deleted."""

    def arrange(self) -> None:
        self.body = {"name": f"template-{self.plan.seed}-{time.time_ns()}", "vm_id": self.place.other.id}
        self.key = str(uuid.uuid4())

    def ask(self, key: str) -> str:
        self.row = self.place.api.templates.create(self.body, self.key)
        return "make"

    def over(self, job_id: str) -> bool:
        return self.place.api.templates.get(self.row["id"])["state"] in ("ok", "failed")

    def end(self, job_id: str) -> Mapping[str, Any]:
        super().end(job_id)
        row = self.place.api.templates.get(self.row["id"])
        assert row["state"] == "ok", dict(row)
        return {"id": job_id, "state": "done", "reason": None}

    def clean(self) -> None:
        row = self.place.api.templates.get(self.row["id"])
        self.place.api.templates.delete(row["id"], row["version"])
        self.place.until("its disks to go", lambda: is_gone(lambda: self.place.api.templates.get(row["id"])))


class DropDisk(Aside):
    """A disk that no VM has is deleted."""

    def arrange(self) -> None:
        body = {"alias": f"spare-{self.plan.seed}-{time.time_ns()}", "domain_id": self.place.spare, "capacity": MIB}
        self.row = self.place.api.disks.create(body)

    def ask(self, key: str) -> str:
        is_gone(lambda: self.place.api.disks.delete(self.row["id"], self.row["version"]))
        return "drop"

    def over(self, job_id: str) -> bool:
        return is_gone(lambda: self.place.api.disks.get(self.row["id"]))


class MakeDomain(Aside):
    """A storage domain is made; afterwards it is deleted, and nothing is left of it."""

    def arrange(self) -> None:
        self.body = self.place.new_domain(f"extra-{self.plan.seed}-{time.time_ns()}")
        self.key = str(uuid.uuid4())

    def ask(self, key: str) -> str:
        self.row = self.place.api.storage_domains.create(self.body, self.key)
        return "make"

    def over(self, job_id: str) -> bool:
        return self.place.api.storage_domains.get(self.row["id"])["state"] == "active"

    def clean(self) -> None:
        row = self.place.api.storage_domains.get(self.row["id"])
        self.place.api.storage_domains.delete(row["id"], row["version"])
        left = [str(path) for path in Path(self.body["path"]).rglob("*")]
        assert not left, f"left behind in the domain's folder: {left[:6]}"


class DropDomain(MakeDomain):
    """A storage domain is deleted."""

    def arrange(self) -> None:
        super().arrange()
        self.row = self.place.api.storage_domains.create(self.body, self.key)

    def ask(self, key: str) -> str:
        is_gone(lambda: self.place.api.storage_domains.delete(self.row["id"], self.row["version"]))
        return "drop"

    def over(self, job_id: str) -> bool:
        return is_gone(lambda: self.place.api.storage_domains.get(self.row["id"]))

    def clean(self) -> None:
        left = [str(path) for path in Path(self.body["path"]).rglob("*")]
        assert not left, f"left behind in the domain's folder: {left[:6]}"


def is_gone(ask: Callable[[], object]) -> bool:
    """Whether the API says that there is no such thing."""
    try:
        ask()
    except ApiError as fault:
        if fault.code == "not_found":
            return True
        raise
    return False


ALL: dict[str, type[Operation]] = {
    "start": Start,
    "stop": Stop,
    "first start": FirstStart,
    "make disk": MakeDisk,
    "template": Template,
    "drop disk": DropDisk,
    "make domain": MakeDomain,
    "drop domain": DropDomain,
}
