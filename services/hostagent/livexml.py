"""What libvirt's live XML says about a domain's disks, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

from services.hostagent import domainxml

MAX_DEPTH = 10_000


@dataclass(frozen=True)
class LiveDisk:
    """One <disk>: `chain` are file names, leaf first; `mirror` the file that a job copies to (None: no <mirror>)."""

    target: str
    alias: str
    chain: tuple[str, ...]
    formats: tuple[str, ...]
    mirror: str | None
    mirror_ready: bool


@dataclass(frozen=True)
class LiveDomain:
    uuid: str
    name: str
    disks: tuple[LiveDisk, ...]
    agent_connected: bool

    def disk(self, disk_id: str) -> LiveDisk | None:
        return next((disk for disk in self.disks if disk.alias == domainxml.alias(disk_id)), None)


def read(text: str) -> LiveDomain:
    root = ET.fromstring(text)  # noqa: S314  (libvirt's own answer)
    disks = tuple(_disk(element) for element in root.findall("./devices/disk[@device='disk']"))
    agent = root.find("./devices/channel/target[@name='org.qemu.guest_agent.0']")
    return LiveDomain(
        uuid=root.findtext("uuid", "").lower(),
        name=root.findtext("name", ""),
        disks=disks,
        agent_connected=agent is not None and agent.get("state") == "connected",
    )


def _disk(element: ET.Element) -> LiveDisk:
    chain, formats = _chain(element)
    target, alias, mirror = element.find("target"), element.find("alias"), element.find("mirror")
    return LiveDisk(
        target="" if target is None else target.get("dev", ""),
        alias="" if alias is None else alias.get("name", ""),
        chain=chain,
        formats=formats,
        mirror=None if mirror is None else _file(mirror),
        # 'yes' only: 'pivot' and 'abort' mean that it ends just now
        mirror_ready=mirror is not None and mirror.get("ready") == "yes",
    )


def _chain(disk: ET.Element) -> tuple[tuple[str, ...], tuple[str, ...]]:
    driver = disk.find("driver")
    files, formats = [_file(disk)], ["" if driver is None else driver.get("type", "")]
    layer = disk.find("backingStore")
    while layer is not None and layer.find("source") is not None and len(files) < MAX_DEPTH:
        kind = layer.find("format")
        files.append(_file(layer))
        formats.append("" if kind is None else kind.get("type", ""))
        layer = layer.find("backingStore")
    return tuple(files), tuple(formats)


def _file(element: ET.Element) -> str:
    source = element.find("source")
    return "" if source is None else source.get("file", "")
