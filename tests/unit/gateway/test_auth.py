"""The admin's token."""

from __future__ import annotations

import base64
import pathlib

import pytest

from gateway.api import auth


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"any:{password}".encode()).decode()


def test_a_token_is_made_once_in_a_private_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "state" / "token"
    first, made = auth.token_from(path)
    assert made
    assert len(first) >= auth.SHORTEST
    assert path.stat().st_mode & 0o777 == 0o600
    assert auth.token_from(path) == (first, False)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("content", "mode"), [("short", 0o600), ("x" * 43, 0o640), ("ä" * 43, 0o600)])
def test_a_bad_token_file_says_why(tmp_path: pathlib.Path, content: str, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(auth.BadTokenFile, match=str(path)):
        auth.token_from(path)


def test_a_folder_in_the_place_of_the_file_is_no_token(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(auth.BadTokenFile):
        auth.token_from(tmp_path)


def test_bearer_is_good_for_all_and_basic_for_reading() -> None:
    tokens = auth.Tokens("t" * 43)
    assert tokens.user("Bearer " + "t" * 43, "POST") == "admin"
    assert tokens.user(basic("t" * 43), "GET") == "admin"
    assert tokens.user(basic("t" * 43), "POST") is None


@pytest.mark.parametrize("head", [None, "", "Bearer", "Bearer x", "Basic ###", f"Basic {'t' * 43}", "Token x"])
def test_anything_else_is_nobody(head: str | None) -> None:
    assert auth.Tokens("t" * 43).user(head, "GET") is None
