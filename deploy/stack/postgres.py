"""A private PostgreSQL in a room, on a free port of 127.0.0.1, as the unprivileged user it insists on."""

import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

from deploy.stack import room, wait

USER = "nobody"
# durability is not what tests of our SQL are about, speed is; `kill` leaves a recoverable database all the same
QUICK = "-c fsync=off -c full_page_writes=off -c shared_buffers=16MB -c autovacuum=off"


class NoPostgres(Exception):
    """PostgreSQL's server programs are not installed."""


def programs() -> Path:
    """Where Debian keeps initdb and postgres, the newest version of those installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        raise NoPostgres("no /usr/lib/postgresql/*/bin/initdb: install postgresql (make setup)")
    return found[-1].parent


@dataclass
class Postgres:
    """`folder` must be ours; `url` is for SQLAlchemy with psycopg 3."""

    folder: Path
    keep: bool = False
    port: int = 0
    _room: room.Room | None = None
    _server: room.Running | None = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self, seconds: float = 60.0) -> None:
        if self._server is not None and self._server.alive():
            return
        if self._room is None:
            self._prepare()
        assert self._room is not None  # noqa: S101  for mypy
        own = str(self.folder / "data")
        argv = [
            str(programs() / "postgres"),
            "-D",
            own,
            "-p",
            str(self.port),
            "-k",
            own,
            "-h",
            "127.0.0.1",
            *QUICK.split(),
        ]
        self._server = self._room.spawn("postgres", [*self._as_user(), *argv])
        room.wait_for_port(self.port, b"", self._server, self._room.log_file("postgres"), seconds)
        wait.until("PostgreSQL to accept", lambda: "accepting" in self._ready(), seconds)

    def kill(self) -> None:
        """SIGKILL of the main process; the others notice and end, and until then no new one can start."""
        if self._server is not None and self._room is not None:
            self._server.kill()
            wait.until("the end of PostgreSQL", lambda: not (self._room and self._room.members()), 60)

    def end(self) -> None:
        if self._room is not None:
            self._room.end()
        self._room = self._server = None

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run a statement with psql, for example `create database inventory`."""
        if self._room is None:
            raise room.RoomGone("PostgreSQL was not started")
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database]
        return self._room.run([programs() / "psql", "-qAt", "-v", "ON_ERROR_STOP=1", *where, "-c", text])

    def _ready(self) -> str:
        if self._room is None:
            return ""
        return self._room.run([programs() / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)], check=False)

    def _as_user(self) -> list[str]:
        ids = pwd.getpwnam(USER)
        return ["setpriv", f"--reuid={ids.pw_uid}", f"--regid={ids.pw_gid}", "--clear-groups"]

    def _prepare(self) -> None:
        own = self.folder / "data"
        own.mkdir(parents=True, exist_ok=True)
        shutil.chown(own, USER)
        own.chmod(0o700)
        for part in (self.folder, *self.folder.parents):
            if str(part).startswith("/tmp/") and not part.stat().st_mode & 1:  # noqa: S108  a private folder's parents
                part.chmod(0o711)
        self.port = self.port or wait.free_port()
        self._room = room.Room("postgres", self.folder, keep=self.keep)
        self._room.start()
        if not (own / "PG_VERSION").exists():
            self._room.run([*self._as_user(), programs() / "initdb", "-D", own, "-A", "trust", "-N", "-E", "UTF8"])
