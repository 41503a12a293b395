"""Names and metadata texts of a file domain (V5 written, V0 to V5 read), as values. Pure: no I/O.

The format is the one that oVirt's VDSM writes, byte for byte, so that its tools read ours and we read theirs.
Readers trust nothing: sizes and counts are bounded, a wrong checksum is refused, unknown keys are kept.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from contracts import errors

BLANK = "00000000-0000-0000-0000-000000000000"  # PUUID of a volume without a parent
REMOVED = "_remove_me_"  # prefix of what is being deleted
NEW = ".new"  # suffix of a file that is not in place yet
VARIABLES = ".nvram"  # suffix of what a VM's UEFI firmware remembers, beside its boot disk's volumes
MiB = 2**20

MAX_DOMAIN_BYTES = 64 * 1024
MAX_VOLUME_BYTES = 512  # what is written; readers take MAX_VOLUME_READ
MAX_VOLUME_READ = 8 * 1024
MAX_KEYS = 1000
MAX_CAPACITY = 2**63 - 1
MAX_TIME = 253_402_300_799  # the end of the year 9999, in seconds since 1970
VERSION = 5
VERSIONS = range(6)

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_KEY = re.compile(r"[A-Z_][A-Z0-9_]*\Z")
_CHECKSUM = "_SHA_CKSUM"
_WHAT_NOW = "Name the directory of a storage domain, or restore its metadata from a backup."

FORMATS = {"RAW": "raw", "COW": "cow"}
QEMU_FORMAT = {"cow": "qcow2", "raw": "raw"}
LEGALITIES = {"LEGAL": "legal", "ILLEGAL": "illegal", "FAKE": "fake"}
VOLTYPES = {"LEAF": "leaf", "INTERNAL": "internal", "SHARED": "shared"}


# -- names ------------------------------------------------------------------------------------------------


def is_uuid(text: str) -> bool:
    return _UUID.match(text) is not None


def domain_path(path: str, domain_id: str) -> str:
    """The domain's own folder; `path` is the mount point."""
    return f"{path.rstrip('/')}/{domain_id}"


def volume_path(path: str, domain_id: str, image: str, volume: str) -> str:
    return f"{domain_path(path, domain_id)}/images/{image}/{volume}"


def variables_path(path: str, domain_id: str, image: str) -> str:
    """What the UEFI firmware of the VM that boots from this image remembers; gone with the image."""
    return f"{domain_path(path, domain_id)}/images/{image}/{image}{VARIABLES}"


def are_variables(image: str, file_name: str) -> bool:
    """Whether this is the name of an image's UEFI variables, in place or being written by libvirt."""
    return file_name.removesuffix(NEW) == image + VARIABLES


def volume_of(file_name: str) -> str | None:
    """The volume whose file this name is, whichever of its three files, finished, new or being removed; the image
    for the file of its VM's UEFI variables."""
    name = file_name.removeprefix(REMOVED).removesuffix(NEW)
    name = name.removesuffix(".meta").removesuffix(".lease").removesuffix(VARIABLES)
    return name if is_uuid(name) else None


@dataclass(frozen=True)
class Place:
    """Where a domain lies: mount point and id, and the paths that follow from them."""

    path: str
    id: str

    @property
    def root(self) -> str:
        return domain_path(self.path, self.id)

    @property
    def dom_md(self) -> str:
        return f"{self.root}/dom_md"

    @property
    def images(self) -> str:
        return f"{self.root}/images"

    def image(self, image: str) -> str:
        return f"{self.images}/{image}"

    def file(self, image: str, volume: str) -> str:
        return f"{self.images}/{image}/{volume}"


# -- domain metadata --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """The values of dom_md/metadata. `sealed`: it has a checksum, and it is right."""

    values: Mapping[str, str]
    sealed: bool = True

    @property
    def id(self) -> str:
        return self.values["SDUUID"]

    @property
    def name(self) -> str:
        return self.values.get("DESCRIPTION", "")

    @property
    def version(self) -> int:
        return int(self.values["VERSION"])

    @property
    def pools(self) -> tuple[str, ...]:
        """The data centers it is attached to; a data domain has one at most."""
        return tuple(p for p in self.values.get("POOL_UUID", "").split(",") if p)


def new_domain(domain_id: str, name: str, data_center_id: str, remote_path: str) -> Domain:
    """A V5 data domain on a local or mounted directory, attached to a data center."""
    values = {
        "ALIGNMENT": str(MiB),
        "BLOCK_SIZE": "512",
        "CLASS": "Data",
        "DESCRIPTION": name,
        "IOOPTIMEOUTSEC": "10",
        "LEASERETRIES": "3",
        "LEASETIMESEC": "60",
        "LOCKPOLICY": "",
        "LOCKRENEWALINTERVALSEC": "5",
        "POOL_UUID": data_center_id,
        "REMOTE_PATH": remote_path,
        "ROLE": "Regular",
        "SDUUID": domain_id,
        "TYPE": "LOCALFS",
        "VERSION": str(VERSION),
    }
    return Domain(values)


def read_domain(data: bytes, path: str) -> Domain:
    """The values of a metadata file's bytes; DomainUnusable says which line or key is wrong.

    A file without a checksum is trusted, as its family does (`sealed` is false then)."""

    def refuse(reason: str) -> NoReturn:
        raise errors.DomainUnusable(path=path, reason=reason, advice=_WHAT_NOW)

    try:
        values = _pairs(data, MAX_DOMAIN_BYTES)
    except ValueError as error:
        refuse(f"dom_md/metadata: {error}")
    seal = values.pop(_CHECKSUM, None)
    if seal is not None and seal != checksum(values):
        refuse("dom_md/metadata: the checksum is wrong: somebody changed it, or it is damaged")
    # VDSM's own sample has an SDUUID with one digit too many: the id is compared with the folder, not parsed.
    for key in ("SDUUID", "VERSION", "CLASS", "TYPE"):
        if key not in values:
            refuse(f"dom_md/metadata: the key {key} is missing")
    if values["VERSION"] not in {str(v) for v in VERSIONS}:
        refuse(f"dom_md/metadata: VERSION is {values['VERSION'][:20]!r}, known are 0 to {VERSION}")
    return Domain(values, sealed=seal is not None)


def write_domain(domain: Domain) -> bytes:
    """The bytes of dom_md/metadata, sealed."""
    values = {**domain.values, _CHECKSUM: checksum(domain.values)}
    return _lines(values).encode()


def checksum(values: Mapping[str, str]) -> str:
    """SHA-1 over the lines KEY=VALUE, sorted by key, without newlines and without the checksum's own line."""
    lines = (f"{key}={values[key]}" for key in sorted(values) if key != _CHECKSUM)
    return hashlib.sha1("".join(lines).encode(), usedforsecurity=False).hexdigest()


# -- volume metadata --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Volume:
    """The values of a volume's `.meta`."""

    values: Mapping[str, str]

    @property
    def image(self) -> str:
        return self.values["IMAGE"]

    @property
    def parent(self) -> str | None:
        parent = self.values["PUUID"]
        return None if parent == BLANK else parent

    @property
    def capacity(self) -> int:
        """Bytes. Before V5 the key was SIZE, in blocks of 512 bytes."""
        return int(self.values["CAP"]) if "CAP" in self.values else int(self.values["SIZE"]) * 512

    @property
    def format(self) -> str:
        return FORMATS[self.values["FORMAT"]]

    @property
    def legality(self) -> str:
        return LEGALITIES[self.values["LEGALITY"]]

    @property
    def heir(self) -> str | None:
        """The volume that a range went into of which this is the top; no key of VDSM's, which ignores it."""
        return self.values.get("HEIR")

    @property
    def volume_type(self) -> str:
        return VOLTYPES[self.values["VOLTYPE"]]

    @property
    def created(self) -> int | None:
        """Seconds since 1970."""
        time = self.values.get("CTIME", "")
        return int(time) if _number(time, MAX_TIME) else None

    def having(
        self,
        *,
        legality: str | None = None,
        parent: str | None = None,
        capacity: int | None = None,
        volume_type: str | None = None,
        heir: str | None = None,
    ) -> Volume:
        """The same with some values changed; everything else, known or not, stays. (A volume with an heir is about to
        be deleted: its description makes room, so that the 512 bytes are kept whatever somebody wrote there.)"""
        values = dict(self.values)
        if heir is not None:
            values |= {"HEIR": heir, "DESCRIPTION": ""}
        if legality is not None:
            values["LEGALITY"] = legality.upper()
        if parent is not None:
            values["PUUID"] = parent
        if volume_type is not None:
            values["VOLTYPE"] = volume_type.upper()
        if capacity is not None and "CAP" in values:
            values["CAP"] = str(capacity)
        elif capacity is not None:
            values["SIZE"] = str(-(-capacity // 512))
        return replace(self, values=values)


def new_volume(
    *,
    domain_id: str,
    image: str,
    parent: str | None,
    capacity: int,
    format: str,
    description: str,
    created: int,
    volume_type: str = "leaf",
) -> Volume:
    """A legal volume in V5's keys; `capacity` in bytes, `created` in seconds since 1970."""
    values = {
        "CAP": str(capacity),
        "CTIME": str(created),
        "DESCRIPTION": description,
        "DISKTYPE": "DATA",
        "DOMAIN": domain_id,
        "FORMAT": format.upper(),
        "GEN": "0",
        "IMAGE": image,
        "LEGALITY": "LEGAL",
        "PUUID": parent or BLANK,
        "SEQ": "0",
        "TYPE": "SPARSE",
        "VOLTYPE": volume_type.upper(),
    }
    return Volume(values)


def read_volume(data: bytes, file: str, disk_id: str) -> Volume:
    """The values of a `.meta` file's bytes; ChainBroken names file and key."""

    def refuse(reason: str) -> NoReturn:
        raise errors.ChainBroken(disk_id=disk_id, reason=f"{file}: {reason}")

    try:
        values = _pairs(data, MAX_VOLUME_READ, end="EOF")
    except ValueError as error:
        refuse(str(error))
    if "NONE" in values:
        refuse("the metadata was cleared (NONE)")
    for key, known in (("FORMAT", FORMATS), ("LEGALITY", LEGALITIES), ("VOLTYPE", VOLTYPES)):
        if values.get(key) not in known:
            refuse(f"{key} is {_shown(values.get(key))}, not one of {', '.join(known)}")
    for key in ("IMAGE", "PUUID", *(("HEIR",) if "HEIR" in values else ())):
        if not is_uuid(values.get(key, "")):
            refuse(f"{key} is {_shown(values.get(key))}, not a UUID")
    size = "CAP" if "CAP" in values else "SIZE"
    if not _number(values.get(size, ""), MAX_CAPACITY if size == "CAP" else MAX_CAPACITY // 512):
        refuse(f"{size} is {_shown(values.get(size))}, not a number of bytes or blocks")
    return Volume(values)


def write_volume(volume: Volume) -> bytes:
    """The bytes of a `.meta`; ValueError if they exceed the format's 512."""
    data = (_lines(volume.values) + "EOF\n").encode()
    if len(data) > MAX_VOLUME_BYTES:
        raise ValueError(f"the metadata has {len(data)} bytes, the format allows {MAX_VOLUME_BYTES}")
    return data


# -- KEY=VALUE --------------------------------------------------------------------------------------------


def _pairs(data: bytes, limit: int, end: str | None = None) -> dict[str, str]:
    if len(data) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    try:
        text = data.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    return _collect(text.split("\n"), end)


def _collect(lines: Iterable[str], end: str | None) -> dict[str, str]:
    values: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line == end:
            return values
        if not line:
            continue
        key, sign, value = line.partition("=")
        if not sign or not _KEY.match(key):
            raise ValueError(f"line {number} is not KEY=VALUE: {_shown(line)}")
        if key in values:
            raise ValueError(f"line {number}: the key {key[:40]} comes twice")
        if len(values) >= MAX_KEYS:
            raise ValueError(f"it has more than {MAX_KEYS} keys")
        values[key] = value
    if end is not None:
        raise ValueError(f"the last line {end} is missing")
    return values


def _lines(values: Mapping[str, str]) -> str:
    for key, value in values.items():
        if "\n" in value or "\0" in value or not _KEY.match(key):
            raise ValueError(f"{key} cannot be written: a line break or NUL in it")
    return "".join(f"{key}={values[key]}\n" for key in sorted(values))


def _number(text: str, high: int) -> bool:
    return len(text) <= 19 and text.isascii() and text.isdigit() and int(text) <= high


def _shown(text: str | None) -> str:
    return "missing" if text is None else repr(text[:60])


# -- the index of user leases -----------------------------------------------------------------------------

LEASE_RECORDS = 3960
INDEX_HEADER = struct.Struct(">i x 4s x 48s x 10s x c 440x c")
INDEX_RECORD = struct.Struct("48s x 11s x 3c")


def empty_lease_index(lockspace: str, time: int) -> bytes:
    """An index of user leases in which every record is free, to be written at MiB of dom_md/xleases.

    Header: magic, version, lockspace, time (seconds since 1970), '-' (no update under way), newline; then records:
    name of the resource, its offset, '-', '-', newline. Padding is NUL. The format is VDSM's."""
    header = INDEX_HEADER.pack(0x12152016, b"0001", lockspace.encode(), b"%010d" % time, b"-", b"\n")
    free = INDEX_RECORD.pack(b"", b"%011d" % 0, b"-", b"-", b"\n")
    return header + free * LEASE_RECORDS
