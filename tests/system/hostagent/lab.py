"""A hypervisor process on a namespace host, driven over its socket, and a VM of the writing guest."""

import contextlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from contracts import errors, hostagent
from deploy.guest import image, model
from deploy.stack import wait
from deploy.stack.host import CONTROL, Host
from services.hostagent import ipc
from services.hostagent.place import Place

ROOT = Path(__file__).parents[3]
MIB = 2**20


def new_id() -> str:
    return str(uuid.uuid4())


class Agent:
    """The hypervisor process. `env` is for its next start: crash points, hangs."""

    def __init__(self, host: Host, **wishes: Any) -> None:
        self.host = host
        control = str(CONTROL)
        self.place = replace(
            Place(
                host.id, str(host.folder / "agent"), libvirt_stop=(control, "stop"), libvirt_start=(control, "start")
            ),
            **wishes,
        )
        Path(self.place.state_dir).mkdir(parents=True, exist_ok=True)
        self.crash_file = host.folder / "crash"
        self.env: dict[str, str] = {}
        self.news: list[tuple[str, dict[str, Any]]] = []
        self.running: Any = None
        self.caller: Any = None

    def start(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "DRYSTONE_CRASH_FILE": str(self.crash_file), **self.env}
        argv = [sys.executable, "-m", "services.hostagent.hypervisor_main", self.place.to_json()]
        self.place.socket.unlink(missing_ok=True)
        self.running = self.host.spawn("hypervisor", argv, env)
        self.caller = ipc.Caller(self.place.socket, f"hostagent-{self.host.id}", self._hear)
        wait.until("the hypervisor process", self._ready, 30)

    def _ready(self) -> bool:
        with contextlib.suppress(errors.Problem):
            return self.beat()["problem"] is None
        return False

    def _hear(self, name: str, payload: dict[str, Any]) -> None:
        self.news.append((name, payload))

    def kill(self) -> None:
        self.running.kill()
        self.caller.close()

    def crash_at(self, point: str) -> None:
        """Die at this point, once."""
        Path(f"{self.crash_file}.fired").unlink(missing_ok=True)
        self.crash_file.write_text(point)

    def wait_crashed(self) -> None:
        self.running.door.wait(60)
        self.caller.close()

    def beat(self) -> dict[str, Any]:
        return dict(self.caller.call("beat", {}, 5.0))

    def ask(self, method: str, request: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """As the door does: the request is loaded by the promise, the reply must be one."""
        promise = getattr(hostagent, method)
        loaded = promise.load_request(request)
        return dict(promise.load_reply(self.caller.call(method, loaded, seconds or promise.deadline)))

    def journal(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads(self.place.journal.read_text()))
        return {}

    def log(self) -> str:
        return self.host.room.log_file("hypervisor").read_text(errors="replace")

    def rss_mib(self) -> float:
        for line in Path(f"/proc/{self.running.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")


class Vm:
    """A VM of the writing guest with one disk (or more) on a domain of its own; volumes by disk, oldest first."""

    def __init__(self, agent: Agent, folder: Path, guest: image.Image, disks: int = 1, **writing: Any) -> None:
        self.agent, self.guest = agent, guest
        self.id = new_id()
        self.domain = self._make_domain(folder / f"storage-{self.id[:8]}")
        self.disks = [{"disk_id": new_id(), "domain": self.domain} for _ in range(disks)]
        self.volumes = [[new_id()] for _ in self.disks]
        self.log = folder / f"{self.id}.serial"
        self.writing = {"ring_mib": 16, **writing}
        self.flow, self.number = new_id(), 1
        for disk, volumes in zip(self.disks, self.volumes, strict=True):
            agent.ask("create_volume", {"disk": disk, "volume_id": volumes[0], "capacity": 256 * MIB})

    def _make_domain(self, path: Path) -> dict[str, Any]:
        path.mkdir(exist_ok=True)
        domain = {"id": new_id(), "path": str(path)}
        made = {"domain": domain, "name": "d1", "data_center_id": new_id(), "io_timeout": 1}
        self.agent.ask("create_domain", made)
        return domain

    @property
    def claim(self) -> dict[str, Any]:
        return {"flow_id": self.flow, "number": self.number}

    def spec(self, leaf: str | None = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": "vm1",
            "memory": 128 * MIB,
            "cpus": 1,
            "firmware": "bios",
            "display": "none",
            "boot": {
                "kernel": str(self.guest.kernel),
                "initrd": str(self.guest.initrd),
                "cmdline": image.cmdline(**self.writing),
                "serial_log": str(self.log),
            },
            "disks": [{"disk": disk, "bus": "virtio", "leaf": leaf} for disk in self.disks],
            "nics": [],
        }

    def start(self) -> dict[str, Any]:
        before = self.safe()
        facts = self.agent.ask("start_vm", self.spec())
        self.writes_on(above=before)
        return facts

    def safe(self) -> int:
        return model.read_log(self.log).safe() if self.log.exists() else 0

    def writes_on(self, count: int = 200, above: int | None = None) -> None:
        above = self.safe() if above is None else above
        wait.until(f"{count} more acknowledged writes", lambda: self.safe() >= above + count, 60)

    def snapshot(self) -> None:
        entries = []
        for disk, volumes in zip(self.disks, self.volumes, strict=True):
            new = new_id()
            self.agent.ask(
                "create_volume",
                {"disk": disk, "volume_id": new, "parent_id": volumes[-1], "capacity": 256 * MIB},
            )
            entries.append({"disk": disk, "volume_id": new, "parent_id": volumes[-1]})
            volumes.append(new)
        self.agent.ask("switch_leaves", {"vm_id": self.id, "disks": entries, "claim": self.claim})

    def look(self, disk: int = 0) -> dict[str, Any]:
        return self.agent.ask("look_disk", {"vm_id": self.id, "disk": self.disks[disk]})

    def merge(self, base: int, disk: int = 0, layers: int = 1, **more: Any) -> dict[str, Any]:
        """The request that merges so many volumes above `base` (an index) down."""
        volumes = self.volumes[disk]
        top = base + layers
        return {
            "vm_id": self.id,
            "disk": self.disks[disk],
            "base_id": volumes[base],
            "top_id": volumes[top],
            "child_id": volumes[top + 1] if top + 1 < len(volumes) else None,
            "between": volumes[base + 1 : top][::-1],
            "claim": self.claim,
            **more,
        }

    def commit(self, base: int, disk: int = 0, bandwidth: int = 0, layers: int = 1) -> dict[str, Any]:
        request = self.merge(base, disk, layers)
        self.agent.ask("start_commit", {**request, "bandwidth": bandwidth})
        return request

    def up(self, base: int, disk: int = 0) -> dict[str, Any]:
        """The request that pulls the volumes from `base` (an index) on up into the active one."""
        volumes = self.volumes[disk]
        return {
            "vm_id": self.id,
            "disk": self.disks[disk],
            "base_id": volumes[base],
            "top_id": volumes[-1],
            "below_id": volumes[base - 1] if base else None,
            "between": volumes[base + 1 : -1][::-1],
            "claim": self.claim,
        }

    def pull(self, base: int, disk: int = 0, bandwidth: int = 0) -> dict[str, Any]:
        request = self.up(base, disk)
        self.agent.ask("start_pull", {**request, "bandwidth": bandwidth})
        return request

    def wait_pulled(self, request: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {}

        def look() -> bool:
            facts.update(self.look())
            assert facts["qemu"]["state"] != "absent", self.last_words()
            return facts["qemu"]["job"] is None and request["base_id"] not in facts["qemu"]["chain"]

        wait.until("the pull", look, 60)
        return facts

    def last_words(self) -> str:
        """Of its QEMU, as libvirt kept them."""
        return (self.agent.host.folder / "qemu-log" / "qemu" / f"vm-{self.id}.log").read_text(errors="replace")[-1500:]

    def finish_pull(self, request: dict[str, Any], disk: int = 0) -> None:
        """record and discard."""
        self.agent.ask("record_pull", {key: value for key, value in request.items() if key != "bandwidth"})
        gone = [*request["between"], request["base_id"]]
        volume = {"vm_id": self.id, "disk": request["disk"], "volume_id": gone[0], "claim": self.claim}
        self.agent.ask("discard_volume", {**volume, "below": gone[1:]})
        for one in gone:
            self.volumes[disk].remove(one)

    def cancel_pull(self, request: dict[str, Any]) -> None:
        keys = ("vm_id", "disk", "base_id", "top_id", "claim")
        self.agent.ask("cancel_job", {**{key: request[key] for key in keys}, "pull": True})

    def cancel(self, request: dict[str, Any]) -> None:
        """End the job of this merge."""
        keys = ("vm_id", "disk", "base_id", "top_id", "child_id", "claim")
        self.agent.ask("cancel_job", {key: request[key] for key in keys})

    def wait_merged(self, request: dict[str, Any]) -> dict[str, Any]:
        """An internal commit is settled."""
        facts: dict[str, Any] = {}

        def look() -> bool:
            facts.update(self.look())
            return facts["qemu"]["job"] is None and request["top_id"] not in facts["qemu"]["chain"]

        wait.until("the commit", look, 60)
        return facts

    def wait_ready(self, disk: int = 0) -> dict[str, Any]:
        facts: dict[str, Any] = {}

        def look() -> bool:
            facts.update(self.look(disk))
            job = facts["qemu"]["job"]
            return bool(job and job["ready"] and facts["libvirt"]["mirror_ready"] and facts["unsure"] is None)

        wait.until("the mirror to be ready", look, 60)
        return facts

    def finish(self, request: dict[str, Any], disk: int = 0) -> None:
        """record and discard."""
        self.agent.ask("record_merge", request)
        volume = {"vm_id": self.id, "disk": request["disk"], "volume_id": request["top_id"], "claim": self.claim}
        self.agent.ask("discard_volume", {**volume, "below": request["between"]})
        for gone in (request["top_id"], *request["between"]):
            self.volumes[disk].remove(gone)

    def power_off(self) -> None:
        assert self.agent.ask("power_off_vm", {"vm_id": self.id})["state"] == "down"

    def leaf(self, disk: int = 0) -> str:
        """The one leaf that the marks on the storage name."""
        facts = self.agent.ask("look_disk", {"vm_id": None, "disk": self.disks[disk]})["storage"]
        assert facts["problem"] is None, facts
        return str(facts["leaf"])

    def check(self, disk: int = 0) -> model.Result:
        """Every acknowledged block reads back from the leaf. The VM must be down."""
        return model.check_image(model.read_log(self.log), disk, self.folder(disk) / self.leaf(disk))

    def folder(self, disk: int = 0) -> Path:
        """Where the disk's volumes lie."""
        return Path(self.domain["path"]) / self.domain["id"] / "images" / str(self.disks[disk]["disk_id"])

    def running(self) -> bool:
        return str(self.agent.ask("look_vm", {"vm_id": self.id})["state"]) == "running"


@contextlib.contextmanager
def in_background(call: Any, *args: Any) -> Iterator[dict[str, Any]]:
    """Run a call beside the test; what it answered or raised is in the dictionary after the block."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["reply"] = call(*args)
        except errors.Problem as problem:
            outcome["problem"] = problem

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join(120)
        outcome["at"] = time.monotonic()
