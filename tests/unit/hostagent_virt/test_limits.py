"""Whose job a new limit goes to."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contracts import errors
from services.hostagent import blockgraph, commit, jobs, offline, views
from services.hostagent.journal import Journal

OWN, OTHER = "ffffffff-0000-4000-8000-000000000001", "ffffffff-0000-4000-8000-000000000002"
ENDS = {"base_id": "v1", "top_id": "v2", "child_id": "v3"}


def asked(flow_id: str) -> dict[str, Any]:
    return {"vm_id": "vm", "disk": {"disk_id": "d"}, "bandwidth": 7, "claim": {"flow_id": flow_id, "number": 1}}


def qemu(top: str) -> views.Qemu:
    """It commits this volume into v1."""
    ids = ("v4", "v3", "v2", "v1")
    layers = tuple(blockgraph.Layer(id_, f"{id_}-file", f"/images/{id_}", False) for id_ in ids)
    job = blockgraph.Job("job", "commit", "running", False, 0, 9, 1, "v1", top, False)
    return views.Qemu("running", layers=layers, ids=ids, job=job)


@pytest.mark.parametrize(("flow_id", "top", "limited"), [(OWN, "v2", True), (OWN, "v3", False), (OTHER, "v2", False)])
def test_only_the_job_that_the_flow_began_is_limited(tmp_path: Path, flow_id: str, top: str, limited: bool) -> None:
    calls: list[str] = []
    virt = SimpleNamespace(ask=lambda _vm, what, _call: calls.append(what))
    seen = (qemu(top), SimpleNamespace(target="vda"))
    parts: Any = SimpleNamespace(turn=lambda _: contextlib.nullcontext(), sure=lambda _: seen, virt=virt)
    begun: Any = jobs.Jobs(Journal(tmp_path / "journal"), None, None, None)  # type: ignore[arg-type]
    idle: Any = SimpleNamespace(limit=lambda _: False)
    begun.begin({**asked(OWN), **ENDS}, "vda")
    with contextlib.nullcontext() if limited else pytest.raises(errors.ForeignJob):
        commit.Commit(parts, begun, None, idle).set_bandwidth(asked(flow_id))  # type: ignore[arg-type]
    assert calls == (["blockJobSetSpeed"] if limited else [])


def test_an_offline_merge_is_limited_by_its_own_flow_and_only_while_it_goes_on() -> None:
    parts: Any = SimpleNamespace(eyes=SimpleNamespace(offline=None))
    running = offline.Offline(parts, lambda *_: None)
    run = offline.Run({**asked(OWN), **ENDS, "pull": False})
    assert running.limit(asked(OWN)) is False
    running._runs["d"] = run
    with pytest.raises(errors.ForeignJob):
        running.limit(asked(OTHER))
    assert running.limit({**asked(OWN), "bandwidth": 9}) is True
    assert run.request["bandwidth"] == 9
    run.over.set()
    assert running.limit(asked(OWN)) is False
