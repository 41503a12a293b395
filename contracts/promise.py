"""What a promise is: one request with its answer, or one piece of news."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

from marshmallow import Schema, ValidationError

from contracts import fitting
from contracts.errors import ALWAYS, BadRequest, Problem


@dataclass(frozen=True)
class Rpc:
    """One request that a service answers. `deadline` is in seconds, from the caller's clock."""

    service: str
    method: str
    request: type[Schema]
    reply: type[Schema]
    errors: tuple[type[Problem], ...] = ()
    deadline: float = 10.0
    version: int = 1

    @property
    def wire(self) -> str:
        """The method's name in the routing key; renaming it is a change of the wire."""
        return f"{self.method}_v{self.version}"

    def load_request(self, body: Any) -> dict[str, Any]:
        return _load(self.request, body, unknown="raise")

    def load_reply(self, body: Any) -> dict[str, Any]:
        return _load(self.reply, body, unknown="exclude")

    def allows(self, problem: Problem) -> bool:
        return isinstance(problem, self.errors + ALWAYS)


@dataclass(frozen=True)
class Event:
    """One piece of news that a service tells."""

    service: str
    name: str
    payload: type[Schema]
    version: int = 1

    @property
    def wire(self) -> str:
        """The routing key (agents append their host id)."""
        return f"{self.name}.v{self.version}"

    def load(self, body: Any) -> dict[str, Any]:
        return _load(self.payload, body, unknown="exclude")


@functools.cache
def _made(schema: type[Schema]) -> Schema:
    """One object per schema: making one copies all its fields, nested ones too, and costs more than the load."""
    return schema()


@functools.cache
def _taker(schema: type[Schema]) -> fitting.Take | None:
    return fitting.taker(_made(schema))


def _load(schema: type[Schema], body: Any, *, unknown: Literal["raise", "exclude"]) -> dict[str, Any]:
    take = _taker(schema)
    loaded: dict[str, Any]
    if take is not None and (taken := take(body)) is not fitting.MISFIT:
        loaded = taken
        return loaded
    try:
        loaded = _made(schema).load(body, unknown=unknown)
    except ValidationError as problem:
        raise BadRequest(errors=problem.messages) from None
    return loaded
