"""The words that schemas are made of: ids, sizes, times, names.

Sizes and rates are whole bytes (per second), times are ISO 8601 in UTC with a Z, ids are lower-case UUIDs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import EXCLUDE, RAISE, Schema, fields, validate

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TIME = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z"
MAC = r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"
MAX_BYTES = 2**63 - 1


class Request(Schema):
    """Something asked: an unknown field is an error."""

    class Meta:
        unknown = RAISE


class Fact(Schema):
    """Something told: unknown fields of a newer version are dropped."""

    class Meta:
        unknown = EXCLUDE


class Nothing(Fact):
    """An empty answer: it was done, or was done before."""


def uid(**options: Any) -> fields.String:
    """A lower-case UUID."""
    return fields.String(validate=validate.Regexp(rf"{UUID}\Z", error="Not a lower-case UUID."), **_need(options))


def name(**options: Any) -> fields.String:
    """A name that people give: 1 to 255 characters, no control characters, no slash."""
    return fields.String(
        validate=[
            validate.Length(1, 255),
            validate.Regexp(r"[^\x00-\x1f\x7f/]+\Z", error="Control characters and / are not allowed."),
        ],
        **_need(options),
    )


def text(limit: int = 4096, least: int | None = None, **options: Any) -> fields.String:
    """Any text but NUL, which PostgreSQL does not store and C ends at."""
    no_nul = validate.Regexp(r"[^\x00]*\Z", error="A NUL character is not allowed.")
    return fields.String(validate=[validate.Length(least, limit), no_nul], **_need(options))


def path(**options: Any) -> fields.String:
    """An absolute path on a host, without '..' parts or control characters."""
    rule = validate.Regexp(r"/(?!(.*/)?\.\.(/|\Z))[^\x00-\x1f\x7f]*\Z", error="Not an absolute path without '..'.")
    return fields.String(validate=[validate.Length(1, 1024), rule], **_need(options))


def size(low: int = 0, **options: Any) -> fields.Integer:
    """Bytes."""
    return fields.Integer(strict=True, validate=validate.Range(low, MAX_BYTES), **_need(options))


def count(low: int = 0, high: int = 2**31 - 1, **options: Any) -> fields.Integer:
    return fields.Integer(strict=True, validate=validate.Range(low, high), **_need(options))


def time(**options: Any) -> fields.String:
    return fields.String(validate=validate.Regexp(rf"{TIME}\Z", error="Not an ISO 8601 time in UTC."), **_need(options))


def mac(**options: Any) -> fields.String:
    """A unicast MAC address in lower case with colons."""
    rules = [
        validate.Regexp(rf"{MAC}\Z", error="Not a MAC address like 56:6f:1a:00:00:01."),
        validate.Regexp(r"[0-9a-f][02468ace]", error="A multicast address cannot be a NIC's."),
    ]
    return fields.String(validate=rules, **_need(options))


def choice(*words: str, **options: Any) -> fields.String:
    return fields.String(validate=validate.OneOf(words), **_need(options))


def number(**options: Any) -> fields.Float:
    return fields.Float(allow_nan=False, **_need(options))


def flag(**options: Any) -> fields.Boolean:
    return fields.Boolean(truthy={True}, falsy={False}, **_need(options))


def nested(schema: type[Schema], **options: Any) -> fields.Nested:
    return fields.Nested(schema, **_need(options))


def many(schema: type[Schema], limit: int = 100_000, **options: Any) -> fields.List[Any]:
    return fields.List(fields.Nested(schema), validate=validate.Length(max=limit), **_need(options))


def uids(limit: int = 10_000, **options: Any) -> fields.List[Any]:
    return fields.List(uid(), validate=validate.Length(max=limit), **_need(options))


def chain(**options: Any) -> fields.List[Any]:
    """Volume ids, leaf first; null where a node is a file that is no volume of ours."""
    return fields.List(uid(allow_none=True), validate=validate.Length(max=10_000), **_need(options))


def words(**options: Any) -> fields.List[Any]:
    return fields.List(fields.String(), validate=validate.Length(max=10_000), **_need(options))


def anything(**options: Any) -> fields.Dict:
    """A JSON object whose keys another promise describes."""
    return fields.Dict(keys=fields.String(), **_need(options))


def said(schema: Schema, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A loaded request without what is its default: the same before and after an upgrade that adds fields with one."""
    known = schema.fields
    return {name: _said(known[name], value) for name, value in asked.items() if not _is_default(known[name], value)}


def _is_default(field: fields.Field[Any], value: Any) -> bool:
    return type(value) is type(field.load_default) and bool(value == field.load_default)


def _said(field: fields.Field[Any], value: Any) -> Any:
    if isinstance(field, fields.List):
        return None if value is None else [_said(field.inner, one) for one in value]
    if isinstance(field, fields.Nested) and value is not None:
        return said(field.schema, value)
    return value


def _need(options: dict[str, Any]) -> dict[str, Any]:
    """A field is required unless it says otherwise or has a default."""
    if "load_default" not in options:
        options.setdefault("required", True)
    return options
