"""Every promise and what travels with it as text, held against a stored copy (promises.golden.txt).

A change of the wire is then a visible diff. `python -m tests.checks.promises --write` stores a new copy.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

from marshmallow import Schema, fields, missing, validate

import contracts
from contracts.errors import ALWAYS, all_problems
from contracts.promise import Event, Rpc

GOLDEN = Path(__file__).with_name("promises.golden.txt")


def promises() -> Iterator[Rpc | Event]:
    """Every promise of every contracts module, in a steady order."""
    for module in sorted(pkgutil.iter_modules(contracts.__path__), key=lambda found: found.name):
        loaded = importlib.import_module(f"contracts.{module.name}")
        found = [value for value in vars(loaded).values() if isinstance(value, Rpc | Event)]
        own = [promise for promise in found if promise.service == module.name]
        yield from sorted(own, key=lambda promise: promise.wire)


def describe() -> str:
    """The whole text: promises, the schemas that they use (each once), errors."""
    found = list(promises())
    lines = [line for promise in found for line in _promise(promise)]
    for name, schema in sorted(_schemas(found).items()):
        lines += ["", f"schema {name}"]
        lines += [f"  {word}: {_field(field)}" for word, field in sorted(schema().fields.items())]
    lines += ["", "errors"]
    for code, kind in sorted(all_problems().items()):
        lines.append(f"  {code} {kind.status}{' always' if kind in ALWAYS else ''}")
    return "\n".join(lines) + "\n"


def _promise(promise: Rpc | Event) -> list[str]:
    if isinstance(promise, Event):
        return [f"event {promise.service}.events {promise.wire} {_named(promise.payload)}"]
    codes = " ".join(sorted({kind.code for kind in promise.errors})) or "-"
    what = f"{_named(promise.request)} -> {_named(promise.reply)}"
    return [
        f"rpc {promise.service}.{promise.wire} {what}",
        f"  queue rpc-{promise.service}, deadline {promise.deadline:g} s, errors {codes}",
    ]


def _named(schema: type[Schema]) -> str:
    return f"{schema.__module__.removeprefix('contracts.')}.{schema.__name__}"


def _schemas(found: list[Rpc | Event]) -> dict[str, type[Schema]]:
    """Every schema that a promise reaches, by its name."""
    todo = [each.payload if isinstance(each, Event) else each.request for each in found]
    todo += [each.reply for each in found if isinstance(each, Rpc)]
    seen: dict[str, type[Schema]] = {}
    while todo:
        schema = todo.pop()
        if _named(schema) in seen:
            continue
        seen[_named(schema)] = schema
        for field in schema().fields.values():
            inner = field.inner if isinstance(field, fields.List) else field
            if isinstance(inner, fields.Nested):
                todo.append(type(inner.schema))
    return seen


def _field(field: fields.Field) -> str:
    words = [_named(type(field.schema)) if isinstance(field, fields.Nested) else type(field).__name__]
    if isinstance(field, fields.List):
        words.append(f"of {_field(field.inner)}")
    if field.load_default is not missing:
        words.append(f"default {'[]' if callable(field.load_default) else field.load_default!r}")
    elif field.required:
        words.append("required")
    if field.allow_none:
        words.append("or null")
    words += [_rule(rule) for rule in field.validators]
    return " ".join(words)


def _rule(rule: object) -> str:
    if isinstance(rule, validate.OneOf):
        return f"one of {'|'.join(map(str, rule.choices))}"
    if isinstance(rule, validate.Range):
        return f"{rule.min}..{rule.max}"
    if isinstance(rule, validate.Length):
        return f"length {rule.min}..{rule.max}"
    if isinstance(rule, validate.Regexp):
        return f"like {rule.regex.pattern!s}"
    return type(rule).__name__


def main() -> int:
    now = describe()
    if "--write" in sys.argv:
        GOLDEN.write_text(now)
        return 0
    if GOLDEN.exists() and GOLDEN.read_text() == now:
        return 0
    print("The promises differ from tests/checks/promises.golden.txt: look at the diff after")
    print("  python -m tests.checks.promises --write")
    print("A change that an older peer would not understand needs a new version of the promise.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
