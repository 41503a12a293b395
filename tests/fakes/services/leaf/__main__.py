"""Answers and hears; remembers what it heard in its database."""

from chassis import run  # isort: skip  # first: it patches

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa

from chassis import bus, context
from chassis.settings import FrameSettings, setting
from contracts import errors
from tests.fakes.services import promises
from tests.fakes.services.leaf.tables import effect, said


@dataclass(frozen=True)
class Settings(FrameSettings):
    section: ClassVar[str] = "leaf"
    appetite: str = setting("", "anything here makes poison digestible")
    slow: float = setting(0.0, "seconds that each event takes")


class Leaf(bus.Service):
    name = "leaf"
    retry_delays = (0.2, 0.4)
    runs: ClassVar[list[str]] = []

    @bus.serves(promises.echo)
    def echo(self, request: dict[str, Any]) -> dict[str, Any]:
        self.runs.append(request["text"])
        if request["id"] is not None:
            self._write_once(request["id"], request["text"])
        bus.sleep(request["seconds"])
        call = context.current()
        return {
            "text": request["text"],
            "pid": os.getpid(),
            "left": context.remaining(),
            "user": call.user,
            "flow_id": call.flow_id,
            "request_id": call.request_id,
        }

    @bus.serves(promises.fail)
    def fail(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["how"] == "declared":
            raise errors.DiskBusy(disk_id="d1", flow_id="f1")
        if request["how"] == "undeclared problem":
            raise errors.NotFound(kind="disk", id="d1")
        if request["how"] == "wrong shape":
            return {"text": 1}
        raise ZeroDivisionError("secret detail")

    @bus.serves(promises.tally)
    def tally(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.frame.db.read() as session:
            rows = session.execute(sa.select(said)).all()
        return {
            "rows": len(rows),
            "distinct": len({(row.text, row.number) for row in rows}),
            "pids": sorted({row.pid for row in rows}),
            "runs": len(self.runs),
            "texts": sorted({row.text for row in rows}),
            "callers": sorted({row.caller for row in rows}),
        }

    @bus.hears(promises.said)
    def said(self, news: dict[str, Any], session: Any) -> None:
        bus.sleep(getattr(self.frame.settings, "slow"))  # noqa: B009
        self._keep(session, news["text"], news["number"])
        if news["text"] == "poison" and not getattr(self.frame.settings, "appetite"):  # noqa: B009
            raise ValueError("cannot digest it")

    @bus.hears(promises.beat, key="host_id")
    def beat(self, news: dict[str, Any], session: Any) -> None:
        self._keep(session, f"beat {news['host_id']}", news["number"])

    def _write_once(self, key: str, text: str) -> None:
        """Asking twice equals asking once."""
        with self.frame.db.write() as session:
            if session.execute(sa.select(effect.c.id).where(effect.c.key == key)).first() is None:
                session.execute(effect.insert().values(key=key, text=text))

    def _keep(self, session: Any, text: str, number: int) -> None:
        call = context.current()
        caller = f"{call.user} {call.request_id} {call.flow_id}"
        session.execute(said.insert().values(text=text, number=number, pid=os.getpid(), caller=caller))


run.serve(Leaf, Settings, "tests.fakes.services.leaf")
