"""One call through the chassis beside one call through bare nameko, on the same private broker.

Both providers are processes of their own; both callers live in one more, which calls them in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.lines import Line
from deploy.stack.rabbitmq import RabbitMQ

CALLS, ROUNDS = 200, 7
PROVIDERS = ("chassis", "nameko")


def run() -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="drystone-bench-", dir="/tmp") as folder:
        broker = RabbitMQ(Path(folder) / "rabbitmq")
        broker.start()
        try:
            with _providers(broker.uri, folder):
                told = _python("-m", "bench.rpc_caller", broker.uri, env=_settings(broker.uri, folder), seconds=120)
        finally:
            broker.end()
    measured = json.loads(told)
    return [Line("one RPC, chassis / bare nameko", "ms", measured["chassis"], measured["nameko"])]


@contextmanager
def _providers(uri: str, folder: str) -> Iterator[None]:
    words = [[sys.executable, "-m", "bench.rpc_provider", kind, uri] for kind in PROVIDERS]
    started = [subprocess.Popen(each, env=_settings(uri, folder), stderr=subprocess.DEVNULL) for each in words]
    try:
        time.sleep(1)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _settings(uri: str, folder: str) -> dict[str, str]:
    ours = {"DRYSTONE_AMQP_URI": uri, "DRYSTONE_STATE_DIR": folder, "DRYSTONE_LOG_LEVEL": "error"}
    return {**os.environ, **ours, "PYTHONWARNINGS": "ignore"}


def _python(*words: str, env: dict[str, str], seconds: float) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=env, timeout=seconds, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout
