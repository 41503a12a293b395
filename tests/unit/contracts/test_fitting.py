"""What is taken at first sight is what marshmallow would have loaded; all else is left to it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import RAISE, Schema, ValidationError, fields, validate

from contracts import fields as f
from contracts import fitting, hostagent, overview
from contracts.promise import Rpc
from tests.checks import promises

HOSTILE = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2**63,
        1.0,
        1.5,
        "",
        "x",
        "0",
        "\0",
        "a" * 5000,
        [],
        [None],
        {},
        {"a": 1},
        {1: 2},
        b"x",
    ]
)


def schemas() -> list[type[Schema]]:
    """All that travel, those inside others too."""
    found: dict[type[Schema], None] = {}

    def add(schema: type[Schema]) -> None:
        if schema not in found:
            found[schema] = None
            for field in schema().fields.values():
                inner = field.inner if isinstance(field, fields.List) else field
                if isinstance(inner, fields.Nested):
                    add(type(inner.schema))

    for each in promises.promises():
        for schema in (each.request, each.reply) if isinstance(each, Rpc) else (each.payload,):
            add(schema)
    return list(found)


def bodies(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    """Whole and right."""
    return st.fixed_dictionaries({name: _values(field) for name, field in schema.fields.items()})


def _values(field: Any) -> st.SearchStrategy[Any]:
    made = KINDS[type(field)](field)
    return made | st.none() if field.allow_none else made


KINDS: dict[type[Any], Callable[[Any], st.SearchStrategy[Any]]] = {
    fields.Nested: lambda field: bodies(field.schema),
    fields.List: lambda field: st.lists(_values(field.inner), max_size=2),
    fields.Integer: lambda field: st.integers(field.validators[0].min, field.validators[0].max),
    fields.Boolean: lambda _: st.booleans(),
    fields.Float: lambda _: st.floats(allow_nan=False, allow_infinity=False),
    fields.Dict: lambda _: st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=2),
    fields.String: lambda field: _words(field).filter(lambda word: _holds(field, word)),
}


def _words(field: Any) -> st.SearchStrategy[str]:
    rules = {type(rule): rule for rule in reversed(field.validators)}
    if validate.OneOf in rules:
        return st.sampled_from(rules[validate.OneOf].choices)
    if validate.Regexp in rules:
        return st.from_regex(rules[validate.Regexp].regex, fullmatch=True)
    return st.text(max_size=5)


def _holds(field: Any, word: str) -> bool:
    try:
        field.deserialize(word)
    except ValidationError:
        return False
    return True


def loaded(schema: type[Schema], body: Any) -> Any:
    """By marshmallow; the error that it raised, in place of a body that it refuses."""
    try:
        return schema().load(body, unknown=RAISE)
    except ValidationError as problem:
        return problem


def alike(one: Any, other: Any) -> bool:
    """Types too: 1, 1.0 and True are three things."""
    return repr(one) == repr(other)


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: f"{schema.__module__}.{schema.__name__}")
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_what_is_taken_is_what_would_be_loaded(schema: type[Schema], data: st.DataObject) -> None:
    take = fitting.taker(schema())
    if take is None:
        return
    body = data.draw(bodies(schema()))
    before = copy.deepcopy(body)
    assert alike(take(body), loaded(schema, body))
    assert alike(body, before)
    for _ in range(8):
        wrong = _spoilt(data, copy.deepcopy(body))
        taken = take(wrong)
        assert taken is fitting.MISFIT or alike(taken, loaded(schema, wrong)), wrong


def _spoilt(data: st.DataObject, body: dict[str, Any]) -> Any:
    """One thing in it, at any depth, is another, is missing or is too much."""
    here: Any = body
    while True:
        places = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not places:
            break
        place = data.draw(st.sampled_from(places))
        if isinstance(here[place], dict | list) and here[place] and data.draw(st.booleans()):
            here = here[place]
            continue
        if isinstance(here, dict) and data.draw(st.integers(0, 4)) == 0:
            del here[place]
        else:
            here[place] = copy.deepcopy(data.draw(HOSTILE))
        return body
    if isinstance(here, dict):
        here["one more"] = 1
    return body


def test_what_is_copied_shares_nothing_that_can_change() -> None:
    body = {"domains": [{"id": "11111111-2222-3333-4444-555555555555", "path": "/srv"}], "named": {"a": 1}}

    class Ask(f.Request):
        domains = f.many(hostagent.DomainRef)
        named = f.anything()

    take = fitting.taker(Ask())
    assert take is not None
    taken = take(body)
    taken["domains"][0]["path"] = "/other"
    taken["domains"].clear()
    taken["named"].clear()
    assert json.dumps(body).count("/srv") == 1
    assert body["named"] == {"a": 1}


def test_most_schemas_have_one() -> None:
    """Those with rules over several fields have none, nor those that hold one."""
    without = {schema.__name__ for schema in schemas() if fitting.taker(schema()) is None}
    assert "CancelJob" in without
    assert len(without) < len(schemas()) / 10, without
    assert fitting.taker(overview.DiskSnapshotRows()) is not None


class Strange(fields.String):
    """Nobody here knows what it does."""


STRANGE = {
    "a class": Strange(),
    "another name outside": fields.String(data_key="other"),
    "another name inside": fields.String(attribute="other"),
    "something done after": fields.String(post_load=str.upper),
    "a rule of one's own": fields.String(validate=lambda _: True),
    "a number from text": fields.Integer(validate=validate.Range(0, 5)),
    "a number without a range": fields.Integer(strict=True),
    "a range without its end": fields.Integer(strict=True, validate=validate.Range(0, 5, min_inclusive=False)),
    "half a range": fields.Integer(strict=True, validate=validate.Range(0)),
    "yes and no": fields.Boolean(),
    "infinity": fields.Float(allow_nan=True),
    "a range of fractions": fields.Float(allow_nan=False, validate=validate.Range(0, 5)),
    "values of an object": fields.Dict(values=fields.String()),
    "a list of it": fields.List(Strange(), validate=validate.Length(max=5)),
    "a list without an end": fields.List(fields.String()),
    "a list that may not be empty": fields.List(fields.String(), validate=validate.Length(1, 5)),
    "an object with it": fields.Nested({"a": Strange()}),
    "many objects": fields.Nested({"a": fields.String()}, many=True),
}


@pytest.mark.parametrize("field", STRANGE.values(), ids=STRANGE)
def test_a_schema_with_something_unknown_has_none(field: Any) -> None:
    assert fitting.taker(Schema.from_dict({"field": field})()) is None
