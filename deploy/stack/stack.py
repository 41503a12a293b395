"""A whole Drystone in one private folder: broker, services, gateway, and hosts with their agents.

    with Stack(hosts=2) as stack:
        stack.url, stack.token            # the HTTP API
        stack.hosts["h1"].virsh("list")
        stack.kill("snapshots"); stack.start("snapshots")

Names of parts: rabbitmq, inventory, snapshots, gateway; for each host (h1, h2, ...) h1, h1.agent, h1.libvirtd.
Everything listens on 127.0.0.1 and on free ports only.
"""

import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.rabbitmq import users
from deploy.stack import room, wait
from deploy.stack.host import CONTROL, Host
from deploy.stack.parts import Libvirtd, Part, Process, WholeHost
from deploy.stack.rabbitmq import RabbitMQ

SERVICES = {"inventory": "services.inventory", "snapshots": "services.snapshots", "gateway": "gateway"}


class Stack:
    """Start with `start` or as a context; `end` ends every process and removes the folder.

    `databases` gives a service's database URL (default: SQLite in its folder). `settings` are extra DRYSTONE_*
    variables for every process. `services` and `agents` leave parts out. keep=True lets all of it outlive this
    process: `record` is the file that `python -m deploy.stack down` then needs.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        hosts: int = 1,
        services: Iterable[str] = tuple(SERVICES),
        agents: bool = True,
        keep: bool = False,
        record: Path | None = None,
        databases: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="ds-"))
        self.keep = keep
        self.hosts = {f"h{i + 1}": Host(self.folder / f"h{i + 1}", f"h{i + 1}", keep=keep) for i in range(hosts)}
        self._passwords = {name: secrets.token_urlsafe(16) for name in [*users.SERVICES, *self.hosts]}
        self.rabbitmq = RabbitMQ(self.folder / "rabbitmq", self._users(), keep=keep)
        self.domain = self.folder / "domain"  # where demo and tests put a storage domain, shared by all hosts
        self.services: dict[str, Process] = {}
        self.agents: dict[str, Process] = {}
        self.address = ""
        self._chosen, self._with_agents, self._record = tuple(services), agents, record
        self._databases = databases or {}
        self._settings = settings or {}
        self._room = room.Room("services", self.folder / "services", keep=keep)

    def start(self) -> "Stack":
        """Start everything and wait until every process is ready; what was started ends again when one is not."""
        try:
            self._start()
        except BaseException:
            self.end(remove=False)
            raise
        return self

    def end(self, remove: bool = True) -> None:
        """Kill every process of the stack and remove its folder."""
        self._room.end()
        for host in self.hosts.values():
            host.end()
        self.rabbitmq.end()
        if self._record is not None:
            self._record.unlink(missing_ok=True)
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Stack":
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        self.end(remove=kind is None)

    @property
    def url(self) -> str:
        """Where the HTTP API is."""
        return f"http://{self.address}"

    @property
    def token(self) -> str:
        """The admin's token."""
        return (self.folder / "token").read_text().strip()

    def part(self, name: str) -> Part:
        """The part of this name; KeyError lists the names there are."""
        parts: dict[str, Part] = {"rabbitmq": self.rabbitmq, **self.services}
        for host in self.hosts.values():
            parts |= {host.name: WholeHost(host), f"{host.name}.libvirtd": Libvirtd(host)}
            parts |= {f"{host.name}.agent": self.agents[host.name]} if host.name in self.agents else {}
        if name not in parts:
            raise KeyError(f"{name}: there are {', '.join(sorted(parts))}")
        return parts[name]

    def process(self, name: str) -> Process:
        """The same for our own processes only: pid, log, crash_at."""
        found = self.part(name)
        if not isinstance(found, Process):
            raise KeyError(f"{name} is no process of ours")
        return found

    def kill(self, name: str) -> None:
        """SIGKILL; for a host a power cut."""
        self.part(name).kill()

    def stop(self, name: str) -> None:
        """An orderly end."""
        self.part(name).stop()

    def start_part(self, name: str) -> None:
        """Start again and wait until it is ready."""
        self.part(name).start()

    def freeze(self, name: str) -> None:
        self.part(name).freeze()

    def cont(self, name: str) -> None:
        self.part(name).cont()

    def another(self, service: str, name: str) -> Process:
        """A second instance of a service on the same database, under another name; the caller starts it."""
        first = self.services[service]
        more = {**first.more, "DRYSTONE_INSTANCE": name}
        made = Process(name, first.module, first.place, first.settings, self.folder / name, more=more)
        self.services[name] = made
        return made

    def _start(self) -> None:
        for part in (self.folder, self.folder / "services", self.domain):
            part.mkdir(parents=True, exist_ok=True)
        token = self.folder / "token"
        if not token.exists():
            token.touch(mode=0o600)
            token.write_text(secrets.token_urlsafe(32) + "\n")
        self.address = f"127.0.0.1:{wait.free_port()}"
        self.rabbitmq.start()
        self._room.start()
        for host in self.hosts.values():
            host.start()
        self._write_down()
        self._launch_services()
        if self._with_agents:
            self._launch_agents()
        for process in [*self.services.values(), *self.agents.values()]:
            process.wait_until_ready()

    def _launch_services(self) -> None:
        for name in self._chosen:
            module = SERVICES[name]
            more = {"DRYSTONE_INSTANCE": name}
            if name == "gateway":
                more["DRYSTONE_HTTP_PORT"] = self.address.partition(":")[2]
                more["DRYSTONE_ADMIN_TOKEN_FILE"] = str(self.folder / "token")
            else:
                more["DRYSTONE_DATABASE_URL"] = self._database(name)
            more["DRYSTONE_AMQP_URI"] = self.rabbitmq.uri_of(name, self._passwords[name])
            self._launch(self.services, name, module, lambda: self._room, more)

    def _launch_agents(self) -> None:
        for host in self.hosts.values():
            user = users.agent_user(host.id)
            more = {
                "DRYSTONE_AMQP_URI": self.rabbitmq.uri_of(user, self._passwords[host.name]),
                "DRYSTONE_INSTANCE": f"hostagent-{host.name}",
                "DRYSTONE_HOST_ID": host.id,
                "DRYSTONE_LIBVIRT_URI": "qemu:///system",
                "DRYSTONE_LIBVIRT_STOP": f"{CONTROL},stop",
                "DRYSTONE_LIBVIRT_START": f"{CONTROL},start",
            }
            self._launch(self.agents, host.name, "services.hostagent", self._place(host), more)

    def _launch(
        self, into: dict[str, Process], key: str, module: str, place: Callable[[], room.Room], more: dict[str, str]
    ) -> None:
        name = f"{key}.agent" if into is self.agents else key
        into[key] = Process(name, module, place, self._settings, self.folder / name, more=more)
        into[key].launch()

    @staticmethod
    def _place(host: Host) -> Callable[[], room.Room]:
        return lambda: host.room

    def _users(self) -> dict[str, Any]:
        """The users of a real installation, and drystone / drystone for tests that look into the broker."""
        services = {name: self._passwords[name] for name in users.SERVICES}
        agents = {host.id: self._passwords[host.name] for host in self.hosts.values()}
        return users.together([users.definitions(services, agents), users.administrator("drystone", "drystone")])

    def _database(self, service: str) -> str:
        return self._databases.get(service, f"sqlite:///{self.folder}/{service}/{service}.sqlite")

    def _write_down(self) -> None:
        """What `down` needs to end a stack that was left running, written before anything can go wrong."""
        if self._record is None:
            return
        rooms = [self._room, self.rabbitmq.room, *(host.room for host in self.hosts.values())]
        left = {
            "folder": str(self.folder),
            "address": self.address,
            "started": int(time.time()),
            "rooms": [one.name_for_ever() for one in rooms if one is not None],
        }
        self._record.parent.mkdir(exist_ok=True)
        self._record.write_text(json.dumps(left, indent=1) + "\n")
