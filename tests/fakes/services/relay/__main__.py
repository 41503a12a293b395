"""Asks the leaf, tells news and runs errands."""

from chassis import run  # isort: skip  # first: it patches

import uuid
from dataclasses import dataclass
from typing import Any, ClassVar

from chassis import bus, outbox
from chassis.frame import Frame
from chassis.settings import FrameSettings
from chassis.steps import Flow, FlowKind, Look, NeedsPerson, Step
from contracts import errors
from tests.fakes.services import promises


@dataclass(frozen=True)
class Settings(FrameSettings):
    section: ClassVar[str] = "relay"


def look(flow: Flow) -> Look:
    """An errand is done as soon as it is looked at, unless it is hard."""
    if flow.data["text"] == "hard":
        raise NeedsPerson(errors.ServiceAway(service="leaf"), "Carry it yourself.")
    return Look.SETTLED


def ask(flow: Flow) -> None:
    """Nothing: it is settled already."""


ERRAND = FlowKind("errand", (Step("carry", settled=look, ask=ask),))


class Relay(bus.Service):
    name = "relay"

    @classmethod
    def flows(cls, frame: Frame) -> tuple[FlowKind, ...]:
        return (ERRAND,)

    @bus.serves(promises.errand)
    def errand(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.frame.runner is not None
        with self.frame.db.write() as session:
            self.frame.runner.start(session, ERRAND, uuid.uuid4().hex, "parcel", {"text": request["text"]})
        return {}

    @bus.serves(promises.nested)
    def nested(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.frame.client.call(promises.echo, request)

    @bus.serves(promises.burst)
    def burst(self, request: dict[str, Any]) -> dict[str, Any]:
        """In one transaction: the publisher has all of it before it when this is answered."""
        with self.frame.db.write() as session:
            for number in range(request["count"]):
                outbox.tell(session, promises.said, {"text": request["text"], "number": number})
        return {}

    @bus.serves(promises.lost)
    def lost(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.frame.db.write() as session:
            outbox.tell(session, promises.said, {"text": "never", "number": 0})
            session.rollback()
        return {}


run.serve(Relay, Settings, "tests.fakes.services.relay")
