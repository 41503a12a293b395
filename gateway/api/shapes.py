"""Marshmallow's schemas in the words of JSON Schema 2020-12 (which OpenAPI 3.1 uses).

Only the fields and rules that `contracts.fields` can make are known; another one is an error at the first look at
the API's description, which a test makes.
"""

from __future__ import annotations

import inspect
from typing import Any

from marshmallow import Schema, missing, validate
from marshmallow import fields as kinds

from gateway.api.route import declared

Shape = dict[str, Any]
_PLAIN: dict[type, Shape] = {
    kinds.String: {"type": "string"},
    kinds.Integer: {"type": "integer"},
    kinds.Float: {"type": "number"},
    kinds.Boolean: {"type": "boolean"},
    kinds.Dict: {"type": "object"},
}


class Shapes:
    """Collects the named shapes (`components.schemas`) that were referred to."""

    def __init__(self) -> None:
        self.named: dict[str, Shape] = {}

    def ref(self, schema: type[Schema]) -> Shape:
        name = schema.__name__
        if name not in self.named:
            self.named[name] = {}  # a place for it, should it refer to itself
            self.named[name] = self.object(declared(schema), about(schema))
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, members: dict[str, kinds.Field[Any]], doc: str = "", optional: tuple[str, ...] = ()) -> Shape:
        """An object with these fields; `optional` ones may be left out whatever the schema says."""
        shape: Shape = {"type": "object", "properties": {n: self.field(field) for n, field in members.items()}}
        required = [name for name, field in members.items() if field.required and name not in optional]
        if required:
            shape["required"] = required
        if doc:
            shape["description"] = doc
        return shape

    def field(self, field: kinds.Field[Any]) -> Shape:
        shape = self._kind(field)
        for rule in field.validators:
            _add_rule(shape, rule)
        if field.allow_none:
            shape = _nullable(shape)
        default = field.load_default
        if default is not missing:
            shape["default"] = default() if callable(default) else default
        return shape

    def _kind(self, field: kinds.Field[Any]) -> Shape:
        if isinstance(field, kinds.Nested):
            return self.ref(type(field.schema))
        if isinstance(field, kinds.List):
            return {"type": "array", "items": self.field(field.inner)}
        return dict(_PLAIN[type(field)])


def about(schema: type[Schema]) -> str:
    """The schema's own docstring, without line breaks."""
    return " ".join((inspect.cleandoc(schema.__doc__ or "") if "__doc__" in vars(schema) else "").split())


def _nullable(shape: Shape) -> Shape:
    if "type" not in shape:
        return {"anyOf": [shape, {"type": "null"}]}
    shape["type"] = [shape["type"], "null"]
    if "enum" in shape:
        shape["enum"] = [*shape["enum"], None]
    return shape


def _add_rule(shape: Shape, rule: Any) -> None:
    if isinstance(rule, validate.Regexp):
        pattern = {"pattern": ecma(str(rule.regex.pattern))}
        if "pattern" in shape:
            shape["allOf"] = [*shape.get("allOf", []), pattern]
        else:
            shape.update(pattern)
    elif isinstance(rule, validate.OneOf):
        shape["enum"] = list(rule.choices)
    elif isinstance(rule, validate.Length):
        ends = ("minItems", "maxItems") if shape["type"] == "array" else ("minLength", "maxLength")
        shape.update({end: value for end, value in zip(ends, (rule.min, rule.max), strict=True) if value is not None})
    elif isinstance(rule, validate.Range):
        shape.update(_bounds(rule))
    elif not callable(rule):
        raise TypeError(f"no JSON Schema for {rule!r}")


def _bounds(rule: validate.Range) -> Shape:
    return {name: end for name, end in (("minimum", rule.min), ("maximum", rule.max)) if end is not None}


def ecma(pattern: str) -> str:
    r"""Python's pattern as JSON Schema takes it: marshmallow anchors the start, and `\Z` is called `$`."""
    end = "$" if pattern.endswith(r"\Z") else ""
    return f"^(?:{pattern.removesuffix(chr(92) + 'Z')}){end}"
