"""Settings: typed fields with a default and a reason, from the environment or a TOML file, all faults told at once.

    @dataclass(frozen=True)
    class InventorySettings(FrameSettings):
        section: ClassVar[str] = "inventory"
        mac_first: str = setting("52:54:00:00:00:00", "first address of the MAC pool")

The environment (`DRYSTONE_MAC_FIRST`) wins over the file's section of the process (`[inventory]`), which wins over
the file's `[frame]` section (what all processes share), which wins over the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import pathlib
import re
import socket
import tomllib
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

Check = Callable[[Any], str | None]


class BadSettings(Exception):
    """Everything that is wrong with the settings, in one message; `faults` has one sentence each."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("The settings are not usable:\n" + "\n".join(f"  - {fault}" for fault in faults))


def setting(
    default: Any = dataclasses.MISSING, doc: str = "", *, secret: bool = False, check: Check | None = None
) -> Any:
    """One field: its default (none = must be set; a callable makes it; `{other_field}` is filled in), one line of
    doc, whether it is masked when shown, and a check that returns what is wrong with a value or None."""
    meta = {"doc": doc, "secret": secret, "check": check}
    if callable(default) and not isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=meta)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=meta, kw_only=True)
    return dataclasses.field(default=default, metadata=meta)


def between(low: float, high: float) -> Check:
    """A check: the number lies within these bounds, both included."""
    return lambda value: None if low <= value <= high else f"must be between {low} and {high}"


def one_of(*allowed: str) -> Check:
    """A check: the text is one of these."""
    return lambda value: None if value in allowed else f"must be one of {', '.join(allowed)}"


def _instance() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class FrameSettings:
    """What every process needs."""

    section: ClassVar[str] = "frame"

    amqp_uri: str = setting("amqp://guest:guest@127.0.0.1:5672/", "where RabbitMQ is, with this process's user")
    state_dir: pathlib.Path = setting(pathlib.Path("/var/lib/drystone"), "folder for files that must survive")
    database_url: str = setting(
        "sqlite:///{state_dir}/{section}.sqlite", "SQLite file or postgresql:// address of this service's database"
    )
    health_port: int = setting(
        0, "port of /healthz, /readyz and /metrics on 127.0.0.1; 0 = none", check=between(0, 65535)
    )
    log_level: str = setting(
        "info", "least important line that is logged", check=one_of("debug", "info", "warning", "error")
    )
    log_json: bool = setting(False, "log JSON lines (for machines) instead of sentences (for eyes)")
    instance: str = setting(_instance, "name of this process among others of its service; must be unique")
    strict_agents: bool = setting(
        False, "refuse news of host agents without the agent's own RabbitMQ user; for brokers with a user per agent"
    )
    flow_lease: float = setting(
        10.0,
        "seconds until flows of an instance that died on another machine are taken over; on this one it is at once",
        check=between(1, 3600),
    )
    flow_patience: float = setting(
        1800.0, "seconds that a flow looks at an unknown outcome before it asks for a person", check=between(1, 1e6)
    )
    flow_limit: int = setting(64, "flows that this instance works on at the same time", check=between(1, 1000))


_ORIGINS = "_origins"
S = TypeVar("S", bound=FrameSettings)


def load(cls: type[S], environ: Mapping[str, str], toml: Mapping[str, Any] | pathlib.Path | None = None) -> S:
    """The settings of one process. `toml` is the file, its parsed content, or None for the file that
    DRYSTONE_CONFIG names. Raises BadSettings with every fault."""
    reading = _Reading(environ)
    content = reading.content(toml)
    types_of = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        found = _find(cls, field.name, environ, content)
        if found is None:
            reading.default(field)
        else:
            reading.take(field, types_of[field.name], *found)
    reading.faults += _unknown(cls, content)
    if reading.faults:
        raise BadSettings(reading.faults)
    return _build(cls, reading.values, reading.origins)


def _build(cls: type[S], values: dict[str, Any], origins: dict[str, str]) -> S:
    for name, value in values.items():
        if origins[name] == "default" and isinstance(value, str) and "{" in value:
            values[name] = value.format_map({**values, "section": cls.section})
    made = cls(**values)
    object.__setattr__(made, _ORIGINS, origins)
    return made


def _find(
    cls: type[FrameSettings], name: str, environ: Mapping[str, str], content: Mapping[str, Any]
) -> tuple[str, Any] | None:
    variable = f"DRYSTONE_{name.upper()}"
    if variable in environ:
        return f"env {variable}", environ[variable]
    for section in dict.fromkeys((cls.section, "frame")):
        table = content.get(section)
        if isinstance(table, Mapping) and name in table:
            return f"file [{section}]", table[name]
    return None


class _Reading:
    """What was read so far: values, where each came from, and everything that was wrong."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.faults: list[str] = []

    def content(self, toml: Mapping[str, Any] | pathlib.Path | None) -> Mapping[str, Any]:
        if isinstance(toml, Mapping):
            return toml
        named = toml or self.environ.get("DRYSTONE_CONFIG")
        if not named:
            return {}
        try:
            return tomllib.loads(pathlib.Path(named).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
            self.faults.append(f"the file {named} cannot be read: {problem}")
            return {}

    def default(self, field: dataclasses.Field[Any]) -> None:
        self.origins[field.name] = "default"
        if field.default_factory is not dataclasses.MISSING:
            self.values[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            self.values[field.name] = field.default
        else:
            variable = f"DRYSTONE_{field.name.upper()}"
            self.faults.append(f"{field.name} ({field.metadata['doc']}) has no default: set {variable}")

    def take(self, field: dataclasses.Field[Any], kind: Any, origin: str, raw: Any) -> None:
        self.origins[field.name] = origin
        check = field.metadata.get("check")
        try:
            value = self.values[field.name] = _parse(kind, raw)
            fault = check(value) if check is not None and value is not None else None
        except (ValueError, TypeError) as problem:
            fault = str(problem)
        if fault:
            shown = "***" if field.metadata.get("secret") else mask(repr(raw))
            self.faults.append(f"{field.name} = {shown} ({origin}): {fault}")


_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _parse(kind: Any, raw: Any) -> Any:
    if isinstance(kind, types.UnionType):  # only "something or None" is used
        inner = next(part for part in typing.get_args(kind) if part is not types.NoneType)
        return None if raw == "" else _parse(inner, raw)
    if typing.get_origin(kind) is tuple:
        return _parse_list(typing.get_args(kind)[0], raw)
    if kind is bool:
        return _parse_bool(raw)
    if kind in (int, float):
        return _parse_number(kind, raw)
    if not isinstance(raw, str):
        raise TypeError("must be a text")
    if kind is pathlib.Path and not raw:
        raise ValueError("must not be empty")
    return kind(raw)


def _parse_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in _WORDS:
        return _WORDS[raw.lower()]
    raise ValueError("must be true or false")


def _parse_number(kind: Any, raw: Any) -> Any:
    word = "a whole number" if kind is int else "a number"
    if isinstance(raw, bool) or not isinstance(raw, str | int | float) or (kind is int and isinstance(raw, float)):
        raise TypeError(f"must be {word}")
    try:
        value = kind(raw)
    except ValueError:
        raise ValueError(f"must be {word}") from None
    if not math.isfinite(value):
        raise ValueError(f"must be {word}")
    return value


def _parse_list(inner: Any, raw: Any) -> tuple[Any, ...]:
    if isinstance(raw, str):
        raw = [part.strip() for part in raw.split(",") if part.strip()]
    if not isinstance(raw, list | tuple):
        raise TypeError("must be a list")
    return tuple(_parse(inner, part) for part in raw)


def _unknown(cls: type[FrameSettings], content: Mapping[str, Any]) -> list[str]:
    """What the file says in this process's sections that no setting takes."""
    faults = []
    shared = [field.name for field in dataclasses.fields(FrameSettings)]
    own = [field.name for field in dataclasses.fields(cls)]
    for section, known in {"frame": shared, cls.section: own}.items():
        table = content.get(section, {})
        if not isinstance(table, Mapping):
            faults.append(f"[{section}] in the file must be a section, not a value")
            continue
        strange = [key for key in table if key not in known]
        faults += [f"[{section}] has the unknown setting {key!r}{_did_you_mean(key, known)}" for key in strange]
    return faults


def _did_you_mean(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def mask(text: str) -> str:
    """The text with the password of the URL in it replaced by ***; rather too much is hidden than too little."""
    return re.sub(r"(://[^:@/]*):.*@", r"\1:***@", text, flags=re.DOTALL)


def show(settings: FrameSettings) -> list[str]:
    """One line per setting: value, origin (default, env, file) and doc; secrets masked. For `drystone config show`."""
    origins: dict[str, str] = getattr(settings, _ORIGINS, {})
    lines = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        shown = "***" if field.metadata.get("secret") and value else mask(str(value))
        lines.append(f"{field.name} = {shown}  ({origins.get(field.name, 'code')})  # {field.metadata['doc']}")
    return lines
