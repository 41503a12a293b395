"""Correct libvirt's status file of a running domain so that it says what QEMU does. Pure.

After a libvirtd died around a pivot, /run/libvirt/qemu/NAME.xml may name the old top, or hold a `<mirror job=''>`
that libvirtd refuses, and with it the VM. What is put right: each disk's source and backing chain become the ones
QEMU has open (the elements are the file's own, so node names and relative paths stay with their files), and mirrors
and block jobs that QEMU does not have are dropped.
"""

from __future__ import annotations

import copy
from xml.etree import ElementTree as ET

from services.hostagent import blockgraph, domainxml

_FORMATS = ("raw", "qcow2")


class Unmendable(Exception):
    """The file and QEMU cannot be brought together by this; the message says why."""


def correct(text: str, blocks: blockgraph.Blocks) -> str:
    """The corrected file; the same text (parsed and written again) when all is right. Raises Unmendable."""
    root = _parse(text)
    live = {job.id: job for job in blocks.jobs if job.status not in ("concluded", "null")}
    touched = set()
    for disk in root.findall("./domain/devices/disk"):
        target, alias = disk.find("target"), disk.find("alias")
        chain = blocks.chain("" if alias is None else alias.get("name", ""))
        if target is None or not chain:
            continue
        if _mend(disk, chain, blocks.job(chain)):
            touched.add(target.get("dev"))
    _drop_jobs(root, live, touched)
    return ET.tostring(root, encoding="unicode")


def _parse(text: str) -> ET.Element:
    try:
        return ET.fromstring(text)  # noqa: S314  (libvirt's own file)
    except ET.ParseError as fault:
        raise Unmendable(f"the status file is no XML: {fault}") from None


def _mend(disk: ET.Element, chain: tuple[blockgraph.Layer, ...], job: blockgraph.Job | None) -> bool:
    """Whether this disk had to be changed."""
    changed = False
    mirror = disk.find("mirror")
    layers = _layers(disk)
    if mirror is not None and (job is None or not mirror.get("job")):
        disk.remove(mirror)
        changed = True
        # what was copied to is a file that QEMU has open: its element may be the only one that names the nodes
        layers.setdefault(_format_node(mirror), (mirror, _kind(mirror)))
    if _nodes(disk) != [layer.node for layer in chain]:
        _rebuild(disk, [_layer(layers, layer) for layer in chain])
        changed = True
    return changed


def _layers(disk: ET.Element) -> dict[str | None, tuple[ET.Element, str]]:
    """Every element of the disk that describes a volume, by the name of its format node, and its format."""
    driver = disk.find("driver")
    found: dict[str | None, tuple[ET.Element, str]] = {}
    found[_format_node(disk)] = (disk, "" if driver is None else driver.get("type", ""))
    layer = disk.find("backingStore")
    while layer is not None and layer.find("source") is not None:
        found.setdefault(_format_node(layer), (layer, _kind(layer)))
        layer = layer.find("backingStore")
    return found


def _layer(
    layers: dict[str | None, tuple[ET.Element, str]], wanted: blockgraph.Layer
) -> tuple[ET.Element, str, str | None, str]:
    """The source element of a layer that QEMU has, its format, its index and its kind (file, block)."""
    if wanted.node not in layers:
        raise Unmendable(f"the status file does not know QEMU's node {wanted.node} ({wanted.path})")
    element, kind = layers[wanted.node]
    source = copy.deepcopy(element.find("source"))
    if source is None or source.get("file") is None or kind not in _FORMATS:
        raise Unmendable(f"the status file describes QEMU's node {wanted.node} in a way that is not known")
    index = element.get("index") or source.get("index")
    return source, kind, index, element.get("type", "file")


def _rebuild(disk: ET.Element, chain: list[tuple[ET.Element, str, str | None, str]]) -> None:
    place = list(disk).index(_need(disk, "source"))
    for tag in ("source", "backingStore"):
        for old in disk.findall(tag):
            disk.remove(old)
    source, kind, index, _ = chain[0]
    _need(disk, "driver").set("type", kind)
    if index:
        source.set("index", index)
    _drop_relative(source)
    disk.insert(place, source)
    inner = ET.Element("backingStore")  # the end of a chain
    for lower, kind, index, sort in reversed(chain[1:]):
        lower.attrib.pop("index", None)
        layer = ET.Element("backingStore", {"type": sort, **({"index": index} if index else {})})
        ET.SubElement(layer, "format", type=kind)
        layer.extend((lower, inner))
        inner = layer
    disk.insert(place + 1, inner)


def _drop_relative(source: ET.Element) -> None:
    """A leaf is nobody's backing file: it has no relative name."""
    private = source.find("privateData")
    if private is not None:
        for relative in private.findall("relPath"):
            private.remove(relative)


def _drop_jobs(root: ET.Element, live: dict[str, blockgraph.Job], touched: set[str | None]) -> None:
    jobs = root.find("blockjobs")
    if jobs is None:
        return
    for job in list(jobs):
        disk = job.find("disk")
        if job.get("name") not in live or (disk is not None and disk.get("dst") in touched):
            jobs.remove(job)
    jobs.set("active", "yes" if len(jobs) else "no")


def _nodes(disk: ET.Element) -> list[str | None]:
    nodes = [_format_node(disk)]
    layer = disk.find("backingStore")
    while layer is not None and layer.find("source") is not None:
        nodes.append(_format_node(layer))
        layer = layer.find("backingStore")
    return nodes


def _format_node(element: ET.Element) -> str | None:
    node = element.find("./source/privateData/nodenames/nodename[@type='format']")
    return None if node is None else node.get("name")


def _kind(element: ET.Element) -> str:
    found = element.find("format")
    return "" if found is None else found.get("type", "")


def _need(disk: ET.Element, tag: str) -> ET.Element:
    found = disk.find(tag)
    if found is None:
        raise Unmendable(f"a disk in the status file has no <{tag}>")
    return found


ET.register_namespace("qemu", domainxml.QEMU_NS)
