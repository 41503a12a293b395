"""Calls both providers of bench.rpc_provider in turns; prints the milliseconds per call of each round as JSON."""

from chassis import run  # isort: skip  # noqa: F401  first: it patches

import json
import sys
import time
from collections.abc import Callable

from nameko.standalone.rpc import ServiceRpcProxy

from bench.lines import Line, in_turns
from bench.rpc import CALLS, ROUNDS
from bench.rpc_provider import echo
from chassis import bus

TEXT = "x" * 200


def timed(call: Callable[[], object]) -> float:
    """Milliseconds per call, mean of a round."""
    begun = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begun) / CALLS * 1000


def main() -> None:
    uri = sys.argv[1]
    client = bus.Client(uri, "bench-caller")
    with ServiceRpcProxy("bare", {"AMQP_URI": uri}) as bare:
        line = in_turns(
            Line("rpc", "ms"),
            lambda: timed(lambda: client.call(echo, {"text": TEXT})),
            lambda: timed(lambda: bare.echo(TEXT)),
            ROUNDS,
        )
    print(json.dumps({"chassis": line.ours, "nameko": line.plain}))


if __name__ == "__main__":
    main()
