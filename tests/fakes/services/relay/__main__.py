"""Asks the leaf and tells news."""

from chassis import run  # isort: skip  # first: it patches

from dataclasses import dataclass
from typing import Any, ClassVar

from chassis import bus, outbox
from chassis.settings import FrameSettings
from tests.fakes.services import promises


@dataclass(frozen=True)
class Settings(FrameSettings):
    section: ClassVar[str] = "relay"


class Relay(bus.Service):
    name = "relay"

    @bus.serves(promises.nested)
    def nested(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.frame.client.call(promises.echo, request)

    @bus.serves(promises.burst)
    def burst(self, request: dict[str, Any]) -> dict[str, Any]:
        for start in range(0, request["count"], 500):
            with self.frame.db.write() as session:
                for number in range(start, min(start + 500, request["count"])):
                    outbox.tell(session, promises.said, {"text": request["text"], "number": number})
            bus.sleep(0)
        return {}

    @bus.serves(promises.lost)
    def lost(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.frame.db.write() as session:
            outbox.tell(session, promises.said, {"text": "never", "number": 0})
            session.rollback()
        return {}


run.serve(Relay, Settings, "tests.fakes.services.relay")
