"""Settings: where values come from, and everything that is refused."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis import settings
from chassis.settings import BadSettings, FrameSettings, between, load, one_of, setting, show


@dataclass(frozen=True)
class Example(FrameSettings):
    section: ClassVar[str] = "example"

    token: str = setting("", "what opens the door", secret=True)
    first: int = setting(7, "a number", check=between(1, 10))
    colour: str = setting("red", "a word", check=one_of("red", "green"))
    hosts: tuple[str, ...] = setting((), "a list")
    ports: tuple[int, ...] = setting((1,), "a list of numbers")
    limit: int | None = setting(None, "nothing means no limit", check=between(1, 10))


@dataclass(frozen=True)
class Demanding(FrameSettings):
    owner: str = setting(doc="who answers for it")


def faults(cls: type[FrameSettings], environ: dict[str, str], toml: Any = None) -> tuple[str, ...]:
    with pytest.raises(BadSettings) as caught:
        load(cls, environ, toml)
    return caught.value.faults


def test_without_anything_the_defaults_hold() -> None:
    found = load(Example, {})
    assert (found.first, found.hosts, found.limit, found.log_json) == (7, (), None, False)
    assert found.database_url == "sqlite:////var/lib/drystone/example.sqlite"


def test_a_default_may_be_made_of_other_settings() -> None:
    assert load(Example, {"DRYSTONE_STATE_DIR": "/x"}).database_url == "sqlite:////x/example.sqlite"
    given_url = {"DRYSTONE_DATABASE_URL": "postgresql:///{state_dir}"}
    assert load(Example, given_url).database_url == "postgresql:///{state_dir}"


def test_every_process_has_its_own_instance_name() -> None:
    assert load(Example, {}).instance != load(Example, {}).instance


def test_the_environment_wins_over_the_own_section_over_the_shared_one() -> None:
    toml = {"frame": {"log_level": "error", "log_json": True}, "example": {"log_level": "warning", "first": 2}}
    found = load(Example, {"DRYSTONE_FIRST": "3"}, toml)
    assert (found.log_json, found.log_level, found.first) == (True, "warning", 3)


def test_the_file_is_named_by_the_environment(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "drystone.toml"
    file.write_text('[example]\nfirst = 4\nhosts = ["a", "b"]\nports = [1, 2]\n[inventory]\nwhatever = 1\n')
    found = load(Example, {"DRYSTONE_CONFIG": str(file)})
    assert (found.first, found.hosts, found.ports) == (4, ("a", "b"), (1, 2))
    assert load(Example, {}, file).first == 4


@pytest.mark.parametrize(
    ("word", "value"), [("1", True), ("yes", True), ("On", True), ("TRUE", True), ("0", False), ("off", False)]
)
def test_words_for_yes_and_no(word: str, value: bool) -> None:
    assert load(Example, {"DRYSTONE_LOG_JSON": word}).log_json is value


def test_lists_and_nothing_in_the_environment() -> None:
    found = load(Example, {"DRYSTONE_HOSTS": "a, b,,c", "DRYSTONE_PORTS": "1,2", "DRYSTONE_LIMIT": ""})
    assert (found.hosts, found.ports, found.limit) == (("a", "b", "c"), (1, 2), None)
    assert load(Example, {"DRYSTONE_LIMIT": "3"}).limit == 3


def test_all_faults_are_told_at_once() -> None:
    environ = {"DRYSTONE_FIRST": "11", "DRYSTONE_COLOUR": "blue", "DRYSTONE_LOG_JSON": "maybe", "DRYSTONE_PORTS": "1,x"}
    toml = {"example": {"frist": 1, "health_port": "x", "log_level": 3}}
    assert faults(Example, environ, toml) == (
        "health_port = 'x' (file [example]): must be a whole number",
        "log_level = 3 (file [example]): must be a text",
        "log_json = 'maybe' (env DRYSTONE_LOG_JSON): must be true or false",
        "first = '11' (env DRYSTONE_FIRST): must be between 1 and 10",
        "colour = 'blue' (env DRYSTONE_COLOUR): must be one of red, green",
        "ports = '1,x' (env DRYSTONE_PORTS): must be a whole number",
        "[example] has the unknown setting 'frist'; did you mean 'first'?",
    )


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ({"example": 3}, "must be a section"),
        ({"frame": {"first": 3}}, "[frame] has the unknown setting 'first'"),
        ({"example": {"zzz": 3}}, "has the unknown setting 'zzz'"),
        ({"example": {"first": True}}, "must be a whole number"),
        ({"example": {"first": 1.5}}, "must be a whole number"),
        ({"example": {"flow_lease": []}}, "must be a number"),
        ({"example": {"flow_lease": float("nan")}}, "must be a number"),
        ({"example": {"hosts": 3}}, "must be a list"),
        ({"example": {"state_dir": ""}}, "must not be empty"),
    ],
)
def test_what_the_file_may_not_say(toml: Any, words: str) -> None:
    assert words in faults(Example, {}, toml)[0]


def test_what_must_be_set_is_asked_for() -> None:
    assert faults(Demanding, {}) == ("owner (who answers for it) has no default: set DRYSTONE_OWNER",)
    assert load(Demanding, {"DRYSTONE_OWNER": "ann"}).owner == "ann"


@pytest.mark.parametrize("text", [None, "first = ", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path, text: Any) -> None:
    file = tmp_path / "drystone.toml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert f"the file {file} cannot be read" in faults(Example, {}, file)[0]


def test_the_message_lists_the_faults() -> None:
    assert str(BadSettings(["a", "b"])) == "The settings are not usable:\n  - a\n  - b"


def test_shown_settings_say_where_they_come_from_and_hide_secrets() -> None:
    environ = {"DRYSTONE_TOKEN": "swordfish", "DRYSTONE_AMQP_URI": "amqp://ann:hush@h:5672/"}
    text = "\n".join(show(load(Example, environ, {"example": {"first": 3}})))
    assert "token = ***  (env DRYSTONE_TOKEN)  # what opens the door" in text
    assert "amqp_uri = amqp://ann:***@h:5672/  (env DRYSTONE_AMQP_URI)" in text
    assert "first = 3  (file [example])  # a number" in text
    assert "colour = red  (default)  # a word" in text
    assert "swordfish" not in text
    assert "hush" not in text
    assert "(code)" in show(Example())[0]


def test_faults_hide_secrets() -> None:
    @dataclass(frozen=True)
    class Picky(FrameSettings):
        token: str = setting("", "x", secret=True, check=lambda _: "too simple")

    assert faults(Picky, {"DRYSTONE_TOKEN": "swordfish"}) == ("token = *** (env DRYSTONE_TOKEN): too simple",)


@given(user=st.text(st.characters(codec="utf-8", exclude_characters=":@/")), password=st.text(min_size=1))
def test_no_password_of_an_address_is_shown(user: str, password: str) -> None:
    assert settings.mask(f"amqp://{user}:{password}@host/") == f"amqp://{user}:***@host/"


@given(number=st.integers(1, 10), names=st.lists(st.from_regex(r"[a-z0-9.-]+", fullmatch=True)))
def test_the_environment_and_the_file_mean_the_same(number: int, names: list[str]) -> None:
    by_environ = load(Example, {"DRYSTONE_FIRST": str(number), "DRYSTONE_HOSTS": ",".join(names)})
    by_file = load(Example, {}, {"example": {"first": number, "hosts": names}})
    assert (by_environ.first, by_environ.hosts) == (by_file.first, by_file.hosts)


@given(st.dictionaries(st.sampled_from(["first", "hosts", "limit", "log_json", "flow_lease"]), st.text()))
def test_any_text_is_taken_or_refused_clearly(texts: dict[str, str]) -> None:
    told: tuple[str, ...] = ()
    try:
        load(Example, {f"DRYSTONE_{name.upper()}": text for name, text in texts.items()})
    except BadSettings as bad:
        told = bad.faults
    assert len(told) <= len(texts)
