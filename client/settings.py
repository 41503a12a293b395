"""Where the API is and with which token: flags, then the environment, then ~/.config/drystone/config.toml.

address = "https://drystone.example:8480"
token_file = "/etc/drystone/token"      # or: token = "..."
ca_file = "/etc/drystone/ca.pem"        # only for a certificate of one's own authority
"""

from __future__ import annotations

import os
import pathlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from client.errors import BadSettings

DEFAULT_ADDRESS = "http://127.0.0.1:8480"
KEYS = ("address", "token", "token_file", "ca_file")


@dataclass(frozen=True)
class Setting:
    value: str
    origin: str  # "flag", "env DRYSTONE_X", the file's path or "default"


@dataclass(frozen=True)
class Settings:
    """`token` is None when none was found: only `config show` works then."""

    address: Setting
    token: Setting | None
    ca_file: Setting | None
    file: pathlib.Path


def file_of(environ: Mapping[str, str]) -> pathlib.Path:
    folder = environ.get("XDG_CONFIG_HOME") or pathlib.Path(environ.get("HOME", "~")) / ".config"
    return pathlib.Path(folder).expanduser() / "drystone" / "config.toml"


def load(flags: Mapping[str, str | None], environ: Mapping[str, str] = os.environ) -> Settings:
    """Raises BadSettings with what is wrong and where."""
    path = file_of(environ)
    sources = [
        {name: Setting(value, "flag") for name, value in flags.items() if value},
        {
            name: Setting(environ[f"DRYSTONE_{name.upper()}"], f"env DRYSTONE_{name.upper()}")
            for name in KEYS
            if environ.get(f"DRYSTONE_{name.upper()}")
        },
        {name: Setting(value, str(path)) for name, value in _content(path).items()},
    ]
    address = _first("address", sources) or Setting(DEFAULT_ADDRESS, "default")
    _check(address)
    return Settings(address, _token(sources), _first("ca_file", sources), path)


def _first(name: str, sources: list[dict[str, Setting]]) -> Setting | None:
    return next((source[name] for source in sources if name in source), None)


def _token(sources: list[dict[str, Setting]]) -> Setting | None:
    """A token or a file with one, whichever is named nearest."""
    for source in sources:
        if "token" in source:
            return _clean(source["token"])
        if "token_file" in source:
            return _clean(_read(source["token_file"]))
    return None


def _read(named: Setting) -> Setting:
    path = pathlib.Path(named.value).expanduser()
    try:
        return Setting(path.read_text(encoding="utf-8"), f"{path} ({named.origin})")
    except (OSError, UnicodeDecodeError) as fault:
        raise BadSettings(f"The token file {path} ({named.origin}) cannot be read: {fault}.") from None


def _clean(token: Setting) -> Setting:
    value = token.value.strip()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise BadSettings(f"The token from {token.origin} is not one: it is empty or has odd characters.")
    return Setting(value, token.origin)


def _check(address: Setting) -> None:
    try:
        parts = urlsplit(address.value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        hint = f"It looks like {DEFAULT_ADDRESS}."
        raise BadSettings(f"The address {address.value!r} ({address.origin}) is not one.", hint)


def _content(path: pathlib.Path) -> dict[str, str]:
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as fault:
        raise BadSettings(f"The file {path} cannot be read: {fault}.") from None
    for name, value in found.items():
        if name not in KEYS or not isinstance(value, str):
            raise BadSettings(f"{path}: {name!r} is not a setting; there are {', '.join(KEYS)}, all texts.")
    return found
