"""What QEMU's monitor and libvirt's XML said (recorded from QEMU 7.2 and libvirt 9.0), read."""

import dataclasses
import json
from pathlib import Path

import pytest

from contracts import errors
from services.hostagent import blockgraph, domainxml, livexml, views
from services.hostagent.process import Process
from services.hostagent.views import Ends

RECORDED = Path(__file__).parent / "recorded"
DISK = "dddddddd-0000-4000-8000-000000000001"
V1, V2, V3, V4 = (f"cccccccc-0000-4000-8000-00000000000{i}" for i in (1, 2, 3, 4))


def blocks(phase: str) -> blockgraph.Blocks:
    told = json.loads((RECORDED / f"{phase}.graph.json").read_text())
    named = {node["node-name"]: node["file"] for node in told["query-named-block-nodes"]}
    return blockgraph.read(
        told["x-debug-query-block-graph"],
        named,
        told["query-block-jobs"],
        told["query-jobs"],
    )


def live(phase: str) -> livexml.LiveDisk:
    found = livexml.read((RECORDED / f"{phase}.live.xml").read_text()).disk(DISK)
    assert found is not None
    return found


def names(paths: tuple[str, ...]) -> list[str]:
    return [Path(path).name for path in paths]


def chain(phase: str) -> tuple[blockgraph.Layer, ...]:
    found = blocks(phase).chain(domainxml.alias(DISK))
    assert found is not None
    return found


def qemu_view(phase: str) -> views.Qemu:
    layers = chain(phase)
    return views.Qemu(
        state="running",
        process=Process(7, 1, "aaaaaaaa-0000-4000-8000-000000000001", ()),
        layers=layers,
        ids=tuple(names(tuple(layer.path for layer in layers))),
        job=blocks(phase).job(layers),
        blocks=blocks(phase),
    )


def libvirt_view(phase: str) -> views.Libvirt:
    disk = live(phase)
    mirror = None if disk.mirror is None else Path(disk.mirror).name
    seen = (disk.target, disk.chain, tuple(names(disk.chain)), mirror is not None, disk.mirror_ready)
    return views.Libvirt("running", *seen, mirror_id=mirror)


@pytest.mark.parametrize(
    ("phase", "expected"),
    [("idle", [V3, V2, V1]), ("internal", [V3, V2, V1]), ("ready", [V3, V2, V1]), ("pivoted", [V2, V1])],
)
def test_qemu_and_libvirt_show_the_same_chain_in_every_phase(phase: str, expected: list[str]) -> None:
    assert names(tuple(layer.path for layer in chain(phase))) == expected
    assert names(live(phase).chain) == expected
    assert views.difference(qemu_view(phase), libvirt_view(phase)) is None


@pytest.mark.parametrize(("phase", "top", "base", "ready"), [("internal", V2, V1, False), ("ready", V3, V2, True)])
def test_a_job_has_the_ends_that_qemu_gives_it(phase: str, top: str, base: str, ready: bool) -> None:
    view = qemu_view(phase)
    child = V3 if top == V2 else None
    assert view.works_on(Ends(base, top, child))
    assert not view.works_on(Ends(top, base, child))
    assert not view.works_on(Ends(base, top, V3 if child is None else None))
    assert not libvirt_view(phase).denies(Ends(base, top, child))
    assert view.job is not None
    assert view.job.ready is ready


def test_an_active_commit_of_a_range_has_its_source_for_top() -> None:
    """Its graph names the layers between as intermediate nodes and the active one as source: it is not taken for a
    merge of one layer."""
    view = qemu_view("range")
    assert view.ids == (V3, V2, V1)
    assert view.works_on(Ends(V1, V3, None))
    for ends in (Ends(V1, V2, V3), Ends(V2, V3), Ends(V1, V2)):
        assert not view.works_on(ends)


def test_a_pull_names_what_goes_and_what_stays() -> None:
    """V2 and V3 go up into V4, which stands on V1 then. The graph names the nodes that go, not the one below them."""
    view = qemu_view("pull")
    assert view.ids == (V4, V3, V2, V1)
    assert view.works_on(Ends(V2, V4, pull=True))
    for ends in (Ends(V2, V4), Ends(V3, V4, pull=True), Ends(V1, V4, pull=True), Ends(V2, V3, pull=True)):
        assert not view.works_on(ends)
    assert view.job is not None
    assert not view.job.active
    assert views.difference(view, libvirt_view("pull")) is None
    assert not libvirt_view("pull").denies(Ends(V2, V4, pull=True))
    told = views.qemu_facts(view)["job"]
    assert (told["type"], told["base_id"], told["top_id"], told["child_id"]) == ("pull", V2, V4, None)


def test_the_xml_or_the_job_of_a_commit_denies_a_pull() -> None:
    assert libvirt_view("ready").denies(Ends(V1, V3, pull=True))
    assert dataclasses.replace(libvirt_view("idle"), job={"type": 2}).denies(Ends(V1, V3, pull=True))
    pulling = dataclasses.replace(libvirt_view("idle"), job={"type": views.PULL})
    assert not pulling.denies(Ends(V1, V3, pull=True))
    assert pulling.denies(Ends(V1, V2, V3))


def test_the_xml_of_an_active_job_denies_an_internal_one_and_another_base() -> None:
    seen = libvirt_view("ready")
    assert seen.denies(Ends(V1, V2, V3))
    assert seen.denies(Ends(V1, V3, None))
    assert not libvirt_view("idle").denies(Ends(V1, V2, V3))
    assert dataclasses.replace(libvirt_view("idle"), job={"type": views.ACTIVE_COMMIT}).denies(Ends(V1, V2, V3))


@pytest.mark.parametrize(
    ("phase", "written"), [("idle", [V3]), ("internal", [V3, V1]), ("ready", [V3, V2]), ("pivoted", [V2])]
)
def test_base_is_open_for_writing_while_a_commit_runs_and_no_longer(phase: str, written: list[str]) -> None:
    assert names(tuple(layer.path for layer in chain(phase) if layer.written)) == written


@pytest.mark.parametrize("phase", ["idle", "pivoted"])
def test_without_a_job_there_is_none(phase: str) -> None:
    assert qemu_view(phase).job is None


def test_a_mirror_is_ready_only_when_libvirt_says_yes() -> None:
    text = (RECORDED / "ready.live.xml").read_text()
    assert live("ready").mirror_ready
    for other in ("ready='pivot'", "ready='abort'", ""):
        disk = livexml.read(text.replace("ready='yes'", other)).disk(DISK)
        assert disk is not None
        assert disk.mirror is not None
        assert not disk.mirror_ready


def test_a_device_that_qemu_does_not_have_has_no_chain() -> None:
    assert blocks("idle").chain(domainxml.alias(V1)) is None


def test_qemu_and_libvirt_differ_when_their_leaves_do() -> None:
    reason = views.difference(qemu_view("pivoted"), libvirt_view("idle"))
    assert reason == f"QEMU's chain is {V2} > {V1}, libvirt's is {V3} > {V2} > {V1}"


def test_a_mirror_without_a_job_is_a_difference() -> None:
    assert views.difference(qemu_view("idle"), libvirt_view("ready")) == "libvirt shows a mirror, QEMU has no job"


@pytest.mark.parametrize(
    ("qemu", "libvirt", "differs"),
    [
        ("running", "running", False),
        ("paused", "running", False),
        ("absent", "absent", False),
        ("absent", "shutoff", False),
        ("absent", "away", False),
        ("running", "absent", True),
        ("running", "shutoff", True),
        ("running", "away", True),
        ("unreachable", "running", True),
        ("absent", "running", True),
    ],
)
def test_not_found_or_shut_off_never_means_stopped(qemu: str, libvirt: str, differs: bool) -> None:
    assert bool(views.life_difference(qemu, libvirt)) is differs


def test_facts_carry_what_the_promise_names() -> None:
    told = views.qemu_facts(qemu_view("ready"))
    assert told["chain"] == [V3, V2, V1]
    assert (told["job"]["top_id"], told["job"]["base_id"], told["job"]["status"]) == (V3, V2, "ready")


def test_nothing_is_begun_beside_a_pull_and_a_pull_beside_nothing() -> None:
    elsewhere = dataclasses.replace(qemu_view("pull"), job=None)
    with pytest.raises(errors.DiskBusy, match="pull-vda"):
        elsewhere.refuse_beside(DISK)
    committing = dataclasses.replace(qemu_view("internal"), job=None)
    committing.refuse_beside(DISK)
    with pytest.raises(errors.DiskBusy):
        committing.refuse_beside(DISK, pull=True)
    qemu_view("pull").refuse_beside(DISK, pull=True)  # its own job is another matter
    qemu_view("idle").refuse_beside(DISK, pull=True)
