"""What a stack is made of: each part can be started, ended, killed, frozen and thawed by its name."""

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from deploy.stack import room, wait
from deploy.stack.host import Host

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/bin/python"


class Part(Protocol):
    """Anything that a chaos test may hurt."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def cont(self) -> None: ...


@dataclass
class Process:
    """One of our own processes: `python -m MODULE` with DRYSTONE_* settings, ready when /readyz says so.

    `place` answers the room at the moment of the start: a host that lost its power gets a new one.
    """

    name: str
    module: str
    place: Callable[[], room.Room]
    settings: Mapping[str, str]
    folder: Path
    health_port: int = 0
    more: dict[str, str] = field(default_factory=dict)
    running: room.Running | None = None

    @property
    def pid(self) -> int:
        return self._alive().pid

    @property
    def log(self) -> Path:
        return self.place().log_file(self.name)

    @property
    def crash_file(self) -> Path:
        return self.folder / "crash-point"

    @property
    def _fired(self) -> Path:
        return self.crash_file.with_name(self.crash_file.name + ".fired")

    def crash_at(self, point: str) -> None:
        """SIGKILL itself, once, when it next passes this named point (chassis/crash.py, also for words behind it)."""
        self.crash_file.write_text(point + "\n")

    def crashed(self) -> bool:
        """Has the point of `crash_at` been reached?"""
        return self._fired.exists()

    def forget_crash(self) -> None:
        """What `crash_at` left, where the process lived through it."""
        self.crash_file.unlink(missing_ok=True)
        self._fired.unlink(missing_ok=True)

    def alive(self) -> bool:
        return self.running is not None and self.running.alive()

    def start(self, seconds: float = 60.0) -> None:
        """Start and wait until it is ready. Starting what runs already is fine."""
        self.launch()
        self.wait_until_ready(seconds)

    def launch(self) -> None:
        """Start without waiting."""
        if self.alive():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fired.unlink(missing_ok=True)
        self.health_port = self.health_port or wait.free_port()
        argv = [str(PYTHON), "-m", self.module]
        self.running = self.place().spawn(self.name, argv, self._environment(), ROOT)

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Until /readyz answers 200; NotInTime with the log's end when the process died or took too long."""

        def look() -> bool:
            if not self.alive():
                raise wait.NotInTime(f"{self.name} ended by itself")
            return self.ready()

        try:
            wait.until(f"{self.name} to be ready", look, seconds, every=0.1)
        except wait.NotInTime as late:
            said = f"{late}; /readyz says: {self.health()}; {self.log} ends with:\n{room.tail(self.log)}"
            raise wait.NotInTime(said) from None

    def ready(self) -> bool:
        return self._ask("readyz")[0] == 200

    def health(self) -> str:
        """What /readyz says, as JSON text; empty when nobody answers."""
        return self._ask("readyz")[1]

    def metrics(self) -> str:
        return self._ask("metrics")[1]

    def stop(self) -> None:
        """SIGTERM and wait; SIGKILL after 15 s."""
        if self.running is not None:
            self.running.end(15)

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()

    def freeze(self) -> None:
        """SIGSTOP: it owns what it owns and does nothing."""
        self._alive().signal(signal.SIGSTOP)

    def cont(self) -> None:
        self._alive().signal(signal.SIGCONT)

    def _alive(self) -> room.Running:
        if self.running is None or not self.running.alive():
            raise room.RoomGone(f"{self.name} does not run")
        return self.running

    def _ask(self, page: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/{page}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode(errors="replace")
        except OSError:
            return 0, ""

    def _environment(self) -> dict[str, str]:
        own = {
            "DRYSTONE_STATE_DIR": str(self.folder),
            "DRYSTONE_HEALTH_PORT": str(self.health_port),
            "DRYSTONE_CRASH_FILE": str(self.crash_file),
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DRYSTONE_")}
        return {**clean, "PYTHONUNBUFFERED": "1", **own, **self.settings, **self.more}


@dataclass
class Libvirtd:
    """The libvirtd of a host, as a part."""

    host: Host

    def start(self) -> None:
        self.host.start_libvirtd()

    def stop(self) -> None:
        self.host.stop_libvirtd()

    def kill(self) -> None:
        self.host.kill_libvirtd()

    def freeze(self) -> None:
        os.kill(self.host.libvirtd_pid(), signal.SIGSTOP)

    def cont(self) -> None:
        os.kill(self.host.libvirtd_pid(), signal.SIGCONT)


@dataclass
class WholeHost:
    """A host with all that runs on it. `kill` is a power cut; after `start` its agent must be started too."""

    host: Host

    def start(self) -> None:
        if not self.host.room.alive():
            self.host.start()

    def stop(self) -> None:
        self.host.end()

    def kill(self) -> None:
        self.host.end()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for pid in self.host.room.members():
            os.kill(pid, number)
