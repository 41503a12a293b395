"""The correction of libvirt's status file, on recorded ones."""

from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest

from services.hostagent import blockgraph, statusxml
from tests.unit.hostagent_virt.test_views_of_qemu import RECORDED, V1, V2, V3, blocks

DISK = "./domain/devices/disk"


def status(phase: str) -> str:
    return (RECORDED / f"{phase}.status.xml").read_text()


def chain_of(text: str) -> list[str]:
    disk = ET.fromstring(text).find(DISK)
    found, layer = [], disk
    while layer is not None and (source := layer.find("source")) is not None:
        found.append(source.get("file", "").rpartition("/")[2])
        layer = layer.find("backingStore")
    return found


def test_a_file_that_names_the_old_top_is_given_qemus_chain() -> None:
    corrected = statusxml.correct(status("ready"), blocks("pivoted"))
    assert chain_of(status("ready")) == [V3, V2, V1]
    assert chain_of(corrected) == [V2, V1] == chain_of(status("pivoted"))
    root = ET.fromstring(corrected)
    assert root.find(f"{DISK}/mirror") is None
    jobs = root.find("blockjobs")
    assert jobs is not None
    assert (len(jobs), jobs.get("active")) == (0, "no")


def test_the_leaf_keeps_its_node_names_and_loses_its_relative_name() -> None:
    root = ET.fromstring(statusxml.correct(status("ready"), blocks("pivoted")))
    source = root.find(f"{DISK}/source")
    assert source is not None
    nodes = [node.get("name") for node in source.iter("nodename")]
    (layer, _) = blocks("pivoted").chains.popitem()[1]
    assert nodes == [layer.storage, layer.node]
    assert source.find("privateData/relPath") is None


def test_a_mirror_whose_job_libvirtd_refuses_is_dropped() -> None:
    damaged = status("ready").replace(
        "<mirror type='file' job='active-commit' ready='yes'", "<mirror type='file' job=''"
    )
    assert damaged != status("ready")
    assert "<mirror" not in statusxml.correct(damaged, blocks("pivoted"))


@pytest.mark.parametrize("phase", ["idle", "internal", "ready", "pivoted"])
def test_a_right_file_keeps_its_meaning(phase: str) -> None:
    corrected = statusxml.correct(status(phase), blocks(phase))
    assert canonical(corrected) == canonical(status(phase))


def canonical(text: str) -> str:
    return ET.canonicalize(text, strip_text=True)


def test_a_live_job_of_qemu_stays_in_the_file() -> None:
    assert "<mirror" in statusxml.correct(status("ready"), blocks("ready"))


def test_a_node_that_the_file_does_not_know_is_for_a_person() -> None:
    (name, chain) = blocks("idle").chains.popitem()
    stranger = blockgraph.Layer("somebody-elses-format", "somebody-elses-storage", "/mnt/other")
    with pytest.raises(statusxml.Unmendable, match="somebody-elses-format"):
        statusxml.correct(status("idle"), blockgraph.Blocks({name: (stranger, *chain)}))


@pytest.mark.parametrize("text", ["", "<domstatus", "no xml at all"])
def test_a_file_that_is_no_xml_is_for_a_person(text: str) -> None:
    with pytest.raises(statusxml.Unmendable):
        statusxml.correct(text, blocks("idle"))


def edited(phase: str, edit: Callable[[ET.Element], None]) -> str:
    root = ET.fromstring(status(phase))
    edit(root)
    return ET.tostring(root, encoding="unicode")


def without(path: str, tag: str) -> Callable[[ET.Element], None]:
    def edit(root: ET.Element) -> None:
        for parent in root.findall(path):
            for child in parent.findall(tag):
                parent.remove(child)

    return edit


@pytest.mark.parametrize("tag", ["target", "alias"])
def test_a_disk_that_qemu_does_not_show_is_left_as_it_is(tag: str) -> None:
    text = edited("ready", without(DISK, tag))
    assert chain_of(statusxml.correct(text, blocks("pivoted"))) == chain_of(text)


def test_a_disk_without_a_driver_is_for_a_person() -> None:
    with pytest.raises(statusxml.Unmendable, match="<driver>"):
        statusxml.correct(edited("ready", without(DISK, "driver")), blocks("pivoted"))


def test_a_layer_without_its_format_is_for_a_person() -> None:
    def bare(root: ET.Element) -> None:
        for path in (f"{DISK}//backingStore", f"{DISK}/mirror"):
            without(path, "format")(root)

    with pytest.raises(statusxml.Unmendable, match="in a way that is not known"):
        statusxml.correct(edited("ready", bare), blocks("pivoted"))


def test_a_file_without_a_list_of_jobs_is_corrected_too() -> None:
    corrected = statusxml.correct(edited("ready", without(".", "blockjobs")), blocks("pivoted"))
    assert chain_of(corrected) == [V2, V1]
    assert ET.fromstring(corrected).find("blockjobs") is None


def test_a_layer_without_an_index_gets_none() -> None:
    def bare(root: ET.Element) -> None:
        for element in root.iter():
            element.attrib.pop("index", None)

    corrected = ET.fromstring(statusxml.correct(edited("ready", bare), blocks("pivoted")))
    assert chain_of(ET.tostring(corrected, encoding="unicode")) == [V2, V1]
    assert [element.tag for element in corrected.iterfind(f"{DISK}//*[@index]")] == []
