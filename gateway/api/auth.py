"""The admin's token: made at the first start, kept in a file that only its owner reads."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import pathlib
import secrets
import stat

SHORTEST = 32  # characters; a made one has 43 (256 bits)
ADMIN = "admin"


class BadTokenFile(Exception):
    """The token file cannot be used; the message says why and what to do."""


def token_from(path: pathlib.Path) -> tuple[str, bool]:
    """The token in the file, and whether it was made just now. Raises BadTokenFile."""
    try:
        made = _make(path)
        return _read(path), made
    except (OSError, UnicodeDecodeError) as fault:
        raise BadTokenFile(f"the token file {path} cannot be used: {fault}") from None


def _make(path: pathlib.Path) -> bool:
    """Written aside and linked, so that two gateways that start at once agree, and none reads half a token."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True


def _read(path: pathlib.Path) -> str:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise BadTokenFile(f"the token file {path} can be read by others: chmod 600 it")
    token = path.read_text(encoding="ascii").strip()
    if len(token) < SHORTEST:
        raise BadTokenFile(f"the token in {path} has less than {SHORTEST} characters: delete the file to get a new one")
    return token


class Tokens:
    """Who a token belongs to. Only hashes are kept in memory, compared in constant time."""

    def __init__(self, admin: str) -> None:
        self._admin = _hash(admin)

    def user(self, authorization: str | None, method: str) -> str | None:
        """The user that an Authorization header names, or None.

        A browser can send Basic only (any user, the token as password). It does so on its own, on requests that
        other pages start too; so Basic is good for reading and nothing else.
        """
        kind, _, value = (authorization or "").partition(" ")
        if kind.lower() == "basic" and method in ("GET", "HEAD"):
            value = _password(value)
        elif kind.lower() != "bearer":
            return None
        return ADMIN if hmac.compare_digest(_hash(value.strip()), self._admin) else None


def _password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
