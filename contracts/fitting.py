"""What fits its schema at first sight, taken without marshmallow: a page of a hundred rows costs it as much as the
query that found them.

`taker(schema)` answers a function that returns a copy of a body that the schema would load to exactly that, and
`MISFIT` for any other: one that is wrong, that leaves something out, that has more in it. That one is marshmallow's,
with its errors, defaults and rules for what is unknown. A schema with anything in it that is not understood here has no
taker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from marshmallow import Schema, fields, validate

Take = Callable[[Any], Any]
MISFIT: Final = object()


def taker(schema: Schema) -> Take | None:
    if any(schema._hooks.values()):  # rules over several fields
        return None
    takes: list[tuple[str, Take]] = []
    for name, field in schema.load_fields.items():
        take = _field(field)
        if take is None or field.data_key is not None or field.attribute is not None:
            return None
        takes.append((name, take))
    return _object(takes)


def _object(takes: list[tuple[str, Take]]) -> Take:
    count = len(takes)

    def take(value: Any) -> Any:
        if type(value) is not dict or len(value) != count:
            return MISFIT
        taken = {}
        for name, part in takes:
            found = part(value.get(name, MISFIT))
            if found is MISFIT:
                return MISFIT
            taken[name] = found
        return taken

    return take


def _field(field: fields.Field[Any]) -> Take | None:
    if field.pre_load or field.post_load:
        return None
    take = _kind(field)
    if take is None or not field.allow_none:
        return take
    return lambda value: None if value is None else take(value)


def _kind(field: fields.Field[Any]) -> Take | None:
    rules = field.validators
    if type(field) is fields.Nested:
        return None if rules or field.many else taker(field.schema)
    if type(field) is fields.List:
        return _list(field, rules)
    if type(field) is fields.String:
        return _string(rules)
    if type(field) is fields.Integer and field.strict:
        return _integer(rules)
    return None if rules else _plain(field)


def _plain(field: fields.Field[Any]) -> Take | None:
    if type(field) is fields.Boolean and (field.truthy, field.falsy) == ({True}, {False}):
        return lambda value: value if type(value) is bool else MISFIT
    if type(field) is fields.Float and not field.allow_nan:
        return lambda value: value if type(value) is float and math.isfinite(value) else MISFIT
    if type(field) is fields.Dict and field.value_field is None and type(field.key_field) is fields.String:
        return lambda value: dict(value) if type(value) is dict and all(type(key) is str for key in value) else MISFIT
    return None


def _list(field: fields.List[Any], rules: list[Any]) -> Take | None:
    inner = _field(field.inner)
    most = _longest(rules)
    if inner is None or most is None:
        return None

    def take(value: Any) -> Any:
        if type(value) is not list or len(value) > most:
            return MISFIT
        taken = [inner(one) for one in value]
        return MISFIT if MISFIT in taken else taken

    return take


def _longest(rules: list[Any]) -> int | None:
    """The one rule that a list may have here."""
    if len(rules) != 1 or type(rules[0]) is not validate.Length:
        return None
    rule = rules[0]
    return rule.max if rule.min is None and rule.equal is None else None


def _string(rules: list[Any]) -> Take | None:
    tests: list[Callable[[str], Any]] = []
    for rule in rules:
        if type(rule) is validate.Regexp:
            tests.append(cast("Callable[[str], Any]", rule.regex.match))
        elif type(rule) is validate.OneOf:
            tests.append(_among(rule.choices))
        elif type(rule) is validate.Length and rule.equal is None:
            tests.append(_between(rule.min or 0, rule.max))
        else:
            return None
    if len(tests) == 1:
        (only,) = tests
        return lambda value: value if type(value) is str and only(value) else MISFIT
    return lambda value: value if type(value) is str and all(test(value) for test in tests) else MISFIT


def _among(choices: Iterable[str]) -> Callable[[str], bool]:
    known = frozenset(choices)
    return lambda value: value in known


def _between(low: int, high: int | None) -> Callable[[str], bool]:
    return lambda value: low <= len(value) and (high is None or len(value) <= high)


def _integer(rules: list[Any]) -> Take | None:
    if len(rules) != 1 or type(rules[0]) is not validate.Range:
        return None
    low, high = rules[0].min, rules[0].max
    if low is None or high is None or not (rules[0].min_inclusive and rules[0].max_inclusive):
        return None
    return lambda value: value if type(value) is int and low <= value <= high else MISFIT
