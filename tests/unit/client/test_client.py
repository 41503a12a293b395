"""The client against answers that a test makes up: retries, foreign servers, ends of jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from client import api, errors


def client(answer: Callable[[httpx.Request], httpx.Response]) -> api.Client:
    return api.Client("http://x", "token", transport=httpx.MockTransport(answer))


def job(state: str, **more: Any) -> dict[str, Any]:
    return {"id": "j", "state": state, "step": "merge", **more}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "FIRST_LOOK", 0.001)
    monkeypatch.setattr(api, "LATER_LOOK", 0.001)


def test_a_job_is_watched_through_an_outage() -> None:
    away = {"code": "service_away", "detail": "away"}
    script = iter([(200, job("running")), (503, away), (503, away), (200, job("done"))])

    def answer(_request: httpx.Request) -> httpx.Response:
        status, body = next(script)
        return httpx.Response(status, json=body)

    with client(answer) as made:
        assert [seen["state"] for seen in made.watch("j")] == ["running", "done"]


def test_a_refusal_is_not_waited_out() -> None:
    refusal = {"code": "not_found", "detail": "no"}
    with client(lambda _: httpx.Response(404, json=refusal)) as made, pytest.raises(errors.ApiError, match="no"):
        list(made.watch("j"))


def test_a_job_that_does_not_end_is_slow() -> None:
    with client(lambda _: httpx.Response(200, json=job("running"))) as made, pytest.raises(errors.JobSlow):
        list(made.watch("j", timeout=0.05))


def test_lists_follow_their_pages() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        after = request.url.params.get("after")
        return httpx.Response(200, json={"items": [after], "next": None if after else "c", "total": 2})

    with client(answer) as made:
        assert list(made.vms.all()) == [None, "c"]


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"hello": 1}', b'"x"'])
@pytest.mark.parametrize("status", [200, 404, 502])
def test_what_is_not_drystone_is_called_so(content: bytes, status: int) -> None:
    with client(lambda _: httpx.Response(status, content=content)) as made, pytest.raises(errors.ApiError) as caught:
        list(made.vms.all())
    assert caught.value.code == "not_drystone"


def test_a_silent_address_is_unreachable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with client(answer) as made, pytest.raises(errors.Unreachable, match="refused"):
        made.health()


def test_events_come_back_where_they_broke_off() -> None:
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Last-Event-ID"))
        number = len(asked)
        text = f'retry: 1\n\nid: b-{number}\nevent: vm_changed\ndata: {{"type": "vm_changed"}}\n\n'
        return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})

    with client(answer) as made:
        events = made.events()
        assert [next(events)["id"] for _ in range(3)] == ["b-1", "b-2", "b-3"]
    assert asked == [None, "b-1", "b-2"]
