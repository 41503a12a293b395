"""`python -m bench.rpc_provider chassis|nameko URI`: a service that says back what it was told."""

from chassis import run  # isort: skip  # first: it patches

import sys
from typing import Any

from marshmallow import fields

from chassis import bus
from chassis.settings import FrameSettings
from contracts.fields import Fact, Request
from contracts.promise import Rpc


class Words(Request):
    text = fields.String(required=True)


class Said(Fact):
    text = fields.String(required=True)


echo = Rpc("bench", "echo", Words, Said)


class Bench(bus.Service):
    name = "bench"

    @bus.serves(echo)
    def echo(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"text": request["text"]}


def bare(uri: str) -> None:
    """The same on nameko alone."""
    from nameko.containers import ServiceContainer  # the plain thing that we are measured against
    from nameko.rpc import rpc

    class Bare:
        name = "bare"

        @rpc
        def echo(self, text: str) -> str:
            return text

    container = ServiceContainer(Bare, {"AMQP_URI": uri})
    container.start()
    container.wait()


if __name__ == "__main__":
    bare(sys.argv[2]) if sys.argv[1] == "nameko" else run.serve(Bench, FrameSettings)
