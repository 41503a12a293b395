"""How a process starts, is, and ends."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from deploy.stack.wait import free_port
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.databases import Postgres
from tests.fakes.process import Process
from tests.fakes.services import promises
from tests.service.chassis.test_bus_events import wait_until


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as reply:
        return reply.code, reply.read().decode()


def test_a_refused_password_ends_the_start_with_one_sentence(run: Any, rabbit: Broker) -> None:
    leaf = run("leaf", amqp_uri=rabbit.uri_of("drystone", "wrong"))
    assert leaf.wait() == 1
    assert len(leaf.log.strip().splitlines()) == 1
    assert "refuses this user and password" in leaf.log
    assert "wrong" not in leaf.log


def test_bad_settings_end_the_start_with_all_faults(run: Any) -> None:
    leaf = run("leaf", health_port="eighty", slow="very")
    assert leaf.wait() == 1
    assert "health_port" in leaf.log
    assert "slow" in leaf.log
    assert "Traceback" not in leaf.log


def test_a_broker_that_is_merely_away_is_waited_for(run: Any, rabbit: Broker, bus: Bus) -> None:
    rabbit.kill()
    leaf = run("leaf")
    leaf.wait_for_log("waiting for it")
    rabbit.start()
    leaf.wait_for_log("started")
    assert bus.call(promises.echo, {"text": "x"}, deadline=20)["text"] == "x"


def test_a_process_ends_in_good_order_and_finishes_what_it_began(leaf: Process, bus: Bus) -> None:
    replies: list[Any] = []
    asking = threading.Thread(target=lambda: replies.append(bus.call(promises.echo, {"text": "x", "seconds": 1})))
    asking.start()
    time.sleep(0.5)
    assert leaf.stop() == 0
    asking.join(20)
    assert replies[0]["text"] == "x"
    assert "Traceback" not in leaf.log


def test_a_process_ends_in_good_order_while_the_broker_is_away(leaf: Process, rabbit: Broker) -> None:
    rabbit.kill()
    leaf.wait_for_log("the broker is away")
    assert leaf.stop() == 0
    rabbit.start()


def test_a_process_ends_while_it_still_waits_for_the_broker(run: Any) -> None:
    leaf = run("leaf", amqp_uri=f"amqp://guest:guest@127.0.0.1:{free_port()}//")
    leaf.wait_for_log("the broker is away ")
    assert leaf.stop() == 0
    assert "Traceback" not in leaf.log
    assert leaf.log.count("the broker is away ") == 1


def test_health_follows_the_broker(run: Any, rabbit: Broker) -> None:
    port = free_port()
    leaf = run("leaf", health_port=port)
    leaf.wait_for_log("started")
    assert get(port, "/readyz")[0] == 200
    rabbit.kill()
    wait_until(lambda: get(port, "/readyz")[0] == 503)
    assert get(port, "/healthz")[0] == 200
    assert "nothing listens" in json.loads(get(port, "/readyz")[1])["checks"]["bus"]
    rabbit.start()
    wait_until(lambda: get(port, "/readyz")[0] == 200)


def test_metrics_count_calls_and_parked_news(run: Any, bus: Bus, rabbit: Broker) -> None:
    rabbit.purge("parked--leaf")
    port = free_port()
    run("leaf", health_port=port).wait_for_log("started")
    bus.call(promises.echo, {"text": "x"})
    bus.tell_anything(promises.said, {"text": "no number"})
    wait_until(lambda: "drystone_parked_events 1.0" in get(port, "/metrics")[1])
    text = get(port, "/metrics")[1]
    assert 'drystone_rpc_served_seconds_count{method="echo",outcome="ok"} 1.0' in text
    assert "drystone_outbox_age_seconds 0.0" in text
    assert "1.0 events are parked" not in get(port, "/healthz")[1]
    assert "1 events are parked" in get(port, "/healthz")[1]
    rabbit.purge("parked--leaf")


def test_health_and_metrics_show_the_flows(run: Any, bus: Bus) -> None:
    port = free_port()
    run("relay", health_port=port).wait_for_log("started")
    bus.call(promises.errand, {"text": "easy"})
    wait_until(lambda: 'drystone_flows{kind="errand",state="done"} 1.0' in get(port, "/metrics")[1])
    bus.call(promises.errand, {"text": "hard"})
    wait_until(lambda: "1 errand flows are stuck and need a person" in get(port, "/healthz")[1])
    assert get(port, "/readyz")[0] == 200  # it is no fault of the process
    assert get(port, "/elsewhere") == (404, "/healthz, /readyz or /metrics\n")


def test_a_health_port_in_use_ends_the_start_with_one_sentence(run: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        leaf = run("leaf", health_port=taken.getsockname()[1])
        assert leaf.wait() == 1
    assert "cannot be used" in leaf.log
    assert "Traceback" not in leaf.log


def test_a_database_that_is_merely_away_is_waited_for(run: Any, postgres: Postgres) -> None:
    url = postgres.fresh()
    postgres.kill()
    leaf = run("leaf", database_url=url)
    leaf.wait_for_log("the database is away; waiting for it")
    postgres.start()
    leaf.wait_for_log("started")


def test_a_process_that_still_opens_its_database_is_not_ready(run: Any, postgres: Postgres) -> None:
    url = postgres.fresh()
    postgres.kill()
    port = free_port()
    leaf = run("leaf", database_url=url, health_port=port)
    leaf.wait_for_log("the database is away; waiting for it")
    status, said = get(port, "/readyz")
    assert (status, json.loads(said)["checks"]) == (503, {"bus": "not connected yet, the process is starting"})
    assert get(port, "/healthz")[0] == 200
    postgres.start()
    leaf.wait_for_log("started")
    wait_until(lambda: get(port, "/readyz")[0] == 200)


def test_a_database_that_a_newer_version_has_changed_is_left_alone(run: Any, postgres: Postgres) -> None:
    url = postgres.fresh()
    leaf = run("leaf", database_url=url)
    leaf.wait_for_log("started")
    leaf.stop()
    postgres.sql("UPDATE alembic_version SET version_num = '9999_later'", url.rsplit("/", 1)[1])
    again = run("leaf", "-again", database_url=url)
    assert again.wait() == 1
    assert "9999_later" in again.log


def test_an_idle_process_is_small_and_quiet(leaf: Process, relay: Process) -> None:
    time.sleep(2)
    before = leaf.cpu() + relay.cpu()
    time.sleep(10)
    used = (leaf.cpu() + relay.cpu() - before) / 2 / 10
    print(f"idle: {used:.2%} of a core, {leaf.memory() / 2**20:.0f} MiB")
    assert used < 0.1  # that it does not spin; the budget is measured by make bench, where nothing else runs
    assert leaf.memory() < 90 * 2**20
