"""The API's description as one HTML page that needs no network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from contracts import errors
from gateway.api.route import PREFIX

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
    "summary{cursor:pointer;padding:.3em 0}code,pre{font:13px ui-monospace,monospace}pre{overflow:auto}"
    "b.m{display:inline-block;width:5em}td,th{text-align:left;vertical-align:top;padding:.1em 1em .1em 0}"
)


def render(api: dict[str, Any]) -> str:
    tags: dict[str, list[str]] = {}
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            tags.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    parts = [f"<h2>{escape(tag)}</h2>{''.join(rows)}" for tag, rows in tags.items()]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Drystone API</title><style>{_STYLE}</style>"
        f"<h1>Drystone API</h1><p>{escape(api['info']['description'])}</p>"
        f"<p>The same for machines: <a href={PREFIX}/openapi.json>openapi.json</a> (OpenAPI {api['openapi']}).</p>"
        f"{''.join(parts)}<h2>Schemas</h2>{_schemas(api)}<h2>Problems</h2>{_problems()}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [_row(p["name"], p["in"], p["schema"], p.get("description", "")) for p in operation["parameters"]]
    body = operation.get("requestBody")
    if body:
        rows.append(_row("body", "", body["content"]["application/json"]["schema"], ""))
    answers = [f"<tr><td>{code}<td>{escape(a['description'])}{_reply(a)}" for code, a in operation["responses"].items()]
    return (
        f"<details id={operation['operationId']}><summary><b class=m>{method.upper()}</b><code>{escape(path)}</code> "
        f"{escape(operation['summary'])}</summary><table>{''.join(rows)}</table><table>{''.join(answers)}</table></details>"
    )


def _row(name: str, place: str, schema: dict[str, Any], doc: str) -> str:
    return f"<tr><td><code>{escape(name)}</code><td>{place}<td>{_schema(schema)}<td>{escape(doc)}"


def _reply(answer: dict[str, Any]) -> str:
    found = answer.get("content", {}).get("application/json", {}).get("schema")
    return f" {_schema(found)}" if found else ""


def _schema(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href=#{name}>{name}</a>"
    return f"<code>{escape(json.dumps(schema, ensure_ascii=False))}</code>"


def _schemas(api: dict[str, Any]) -> str:
    return "".join(
        f"<details id={name}><summary><code>{name}</code> {escape(shape.get('description', ''))}</summary>"
        f"<pre>{escape(json.dumps(shape, indent=1))}</pre></details>"
        for name, shape in api["components"]["schemas"].items()
    )


def _problems() -> str:
    rows = [
        f"<tr id={code}><td><code>{code}</code><td>{kind.status}<td>{escape(kind.message)}<td>{escape(kind.hint)}"
        for code, kind in sorted(errors.all_problems().items())
    ]
    return f"<table><tr><th>code<th>status<th>message<th>what to do</tr>{''.join(rows)}</table>"
