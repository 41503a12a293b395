"""The page of answers is checked, and what would not be shown or is not proved is found."""

from tests.checks import answers

PAGE = """
| bad input | HTTP | code | test |
|---|---|---|---|
| no token | 401 | `unauthorized` | test_api: nothing_but_healthz… |
{row}

| code | why |
|---|---|
| `late` | nobody waits any more |
"""
NAMES = {"test_api", "test_nothing_but_healthz_is_open"}


def crooked(row: str) -> list[str]:
    return list(answers.crooked(PAGE.format(row=row)))


def unproved(row: str) -> list[str]:
    return list(answers.unproved(PAGE.format(row=row), NAMES))


def test_a_row_with_more_or_fewer_cells_than_its_head_is_found() -> None:
    assert crooked("| no body | 400 | `bad_body` | test_api |") == []
    assert crooked("| no body | 400 | `bad_body` | 4 | test_api |") == ["line 5 has 5 cells in a table of 4: no body"]
    assert crooked("| no body | 400 | test_api |") == ["line 5 has 3 cells in a table of 4: no body"]
    assert crooked("| no body | 400 | `bad_body` | test_api ||") == ["line 5 has 5 cells in a table of 4: no body"]


def test_a_row_without_a_test_or_with_one_that_is_not_there_is_found() -> None:
    assert unproved("| no body | 400 | `bad_body` | service gateway/test_api |") == []
    assert unproved("| no body | 400 | `bad_body` | what Flask refuses |") == ["line 5 names no test: no body"]
    assert unproved("| no body | 400 | `bad_body` | |") == ["line 5 names no test: no body"]
    assert unproved("| no body | 400 | `bad_body` | test_api: only_json |") == [
        "line 5 names only_json, which is in no test"
    ]


def test_codes_are_read_from_every_table() -> None:
    assert answers.told(PAGE.format(row="| none | 503 | `bus_away` (2) | test_api |")) == {
        "unauthorized",
        "bus_away",
        "late",
    }
