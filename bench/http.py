"""One GET through the gateway beside a bare Flask application under the same WSGI server, and beside its own /healthz.

The gateway's GET asks a service over the bus; bare Flask answers a constant of the same size. The gap is the price of
the bus, the contract and the token; the second line is the gateway without the bus.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import httpx

from bench.lines import Line, in_turns
from deploy.stack import wait
from deploy.stack.stack import Stack

REQUESTS, ROUNDS = 200, 5

BARE = """
import eventlet; eventlet.monkey_patch()
import sys, eventlet.wsgi
from flask import Flask, Response
app = Flask("bare")
BODY = sys.argv[2]
app.add_url_rule("/", view_func=lambda: Response(BODY, mimetype="application/json"))
eventlet.wsgi.server(eventlet.listen(("127.0.0.1", int(sys.argv[1]))), app, log_output=False)
"""


def run() -> list[Line]:
    with Stack(hosts=0, agents=False) as stack:
        head = {"Authorization": f"Bearer {stack.token}"}
        with httpx.Client(base_url=stack.url, headers=head, trust_env=False) as ours:
            ours.post("/api/v1/data-centers", json={"name": "dc1"}).raise_for_status()
            return _beside(ours, ours.get("/api/v1/data-centers").raise_for_status().text)


def _beside(ours: httpx.Client, body: str) -> list[Line]:
    port = wait.free_port()
    words = [sys.executable, "-W", "ignore", "-c", BARE, str(port), body]
    bare = subprocess.Popen(words, env=dict(os.environ), stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as plain:
            wait.until("bare Flask", lambda: _answers(plain), 20)
            return [
                _pair("GET of a list through the bus / bare Flask", ours, "/api/v1/data-centers", plain),
                _pair("GET /healthz of the gateway / bare Flask", ours, "/healthz", plain),
            ]
    finally:
        bare.terminate()
        bare.wait(10)


def _pair(name: str, ours: httpx.Client, path: str, plain: httpx.Client) -> Line:
    return in_turns(Line(name, "ms"), lambda: _timed(ours, path), lambda: _timed(plain, "/"), ROUNDS)


def _timed(client: httpx.Client, path: str) -> float:
    """Milliseconds per GET, mean of a round."""
    begun = time.perf_counter()
    for _ in range(REQUESTS):
        client.get(path).raise_for_status()
    return (time.perf_counter() - begun) / REQUESTS * 1000


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/").is_success
    except httpx.HTTPError:
        return False
