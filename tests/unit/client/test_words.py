"""Sizes, settings, names and exit codes of the command."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

from client import errors, follow, names, session, settings, units
from client.commands import vm

ROOT = pathlib.Path(__file__).parents[3]
ID = "0b0f4c3e-7f0e-4f43-9a3c-2f6a3f1c9f10"


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512", 512), ("4GiB", 2**32), ("4 gb", 2**32), ("1.5K", 1536), ("2T", 2**41)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert units.size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1", "4X", "1e9", "4GiBs", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.size(text)


def test_sizes_are_written() -> None:
    assert [units.human(n) for n in (0, 1023, 1024, 5 * 2**30, None)] == ["0 B", "1023 B", "1.0 KiB", "5.0 GiB", "-"]


def test_flags_win_over_environment_over_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "drystone" / "config.toml"
    file.parent.mkdir()
    file.write_text('address = "http://file:1"\ntoken = "file"\n')
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert settings.load({}, environ).address.value == "http://file:1"
    environ["DRYSTONE_ADDRESS"] = "http://env:1"
    assert settings.load({}, environ).address.origin == "env DRYSTONE_ADDRESS"
    assert settings.load({"address": "http://flag:1"}, environ).address.value == "http://flag:1"
    secret = tmp_path / "t"
    secret.write_text("from-file\n")
    token = settings.load({}, environ | {"DRYSTONE_TOKEN_FILE": str(secret)}).token
    assert token is not None
    assert token.value == "from-file"


@pytest.mark.parametrize("content", ['colour = "red"', "token = 5", "token", 'address = "localhost:8480"'])
def test_a_bad_file_is_named(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / "drystone").mkdir()
    (tmp_path / "drystone" / "config.toml").write_text(content)
    with pytest.raises(errors.BadSettings, match=r"config\.toml"):
        settings.load({}, {"XDG_CONFIG_HOME": str(tmp_path)})


class Rows:
    """One kind of resource, as a client has it."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.vms, self._rows = self, rows

    def all(self, **_filters: Any) -> list[dict[str, Any]]:
        return list(self._rows)

    def get(self, id: str) -> dict[str, Any]:
        return next(row for row in self._rows if row["id"] == id)


def test_a_name_wins_over_the_beginning_of_an_id() -> None:
    rows: Any = Rows({"id": ID, "name": "web"}, {"id": ID.replace("0b", "1b"), "name": ID[:8]})
    assert names.find(rows, names.VM, ID[:8])["name"] == ID[:8]
    assert names.find(rows, names.VM, ID[:5])["name"] == "web"
    assert names.find(rows, names.VM, ID.upper())["name"] == "web"
    with pytest.raises(errors.NotFound):
        names.find(rows, names.VM, ID[:3])


def test_a_nic_is_written_in_one_word() -> None:
    assert vm.nic_of("eth0,model=e1000,linked=no") == {"name": "eth0", "model": "e1000", "linked": False}


def test_every_client_error_has_an_exit_code() -> None:
    kinds = [kind for kind in errors.ClientError.__subclasses__() if kind is not errors.ApiError]
    assert all(session.exit_code(kind("x")) for kind in kinds)


def test_exit_codes_are_documented() -> None:
    told = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "command.md").read_text(), re.MULTILINE)
    assert [int(code) for code in told] == [*range(11), session.INTERRUPTED]


def test_a_merge_that_never_ends_by_itself_says_what_to_do() -> None:
    progress = {"cur": 1, "end": 2**30, "rate": 0, "behind": True, "offline": False}
    job: dict[str, Any] = {"id": ID, "state": "running", "step": "commit", "progress": progress}
    assert "the guest writes as fast as it is copied" in follow.said(job)
    assert f"drystone job limit {ID} 0" in follow.way_out(job)
    assert follow.way_out({**job, "progress": {**progress, "behind": False}}) == ""


def test_a_merge_of_a_vm_that_is_down_says_that_it_does_not_start() -> None:
    progress = {"cur": 1, "end": 2**30, "rate": 0, "behind": False, "offline": True}
    assert "does not start" in follow.said({"state": "running", "step": "commit", "progress": progress})
