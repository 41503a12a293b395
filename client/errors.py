"""What can go wrong when the API is asked.

ClientError
├── ApiError      the API answered with a problem: `code`, `status`, `fields`, `hint`
├── Unreachable   nothing answered at that address; whether a change was made is unknown
├── NotFound      no object has that name
├── Ambiguous     several objects have that name
├── JobFailed     the job ended without doing its work; nothing of it is left
├── JobStuck      the job needs a person
├── JobSlow       the job did not end in time; it goes on
└── BadSettings   address, token or the settings file cannot be used
"""

from __future__ import annotations

from typing import Any


class ClientError(Exception):
    """`hint` says what to do; empty where there is nothing."""

    code = "client_error"

    def __init__(self, message: str, hint: str = "") -> None:
        self.hint = hint
        super().__init__(message)

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "detail": str(self), "hint": self.hint}


class ApiError(ClientError):
    """A problem of the API (application/problem+json)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status, self.problem = status, problem
        self.code = str(problem.get("code", "unknown"))
        self.fields: dict[str, Any] = problem.get("fields") or {}
        self.correlation_id = str(problem.get("correlation_id", ""))
        super().__init__(str(problem.get("detail") or f"HTTP status {status}"), str(problem.get("hint", "")))

    def as_dict(self) -> dict[str, Any]:
        return self.problem


class Unreachable(ClientError):
    code = "unreachable"


class NotFound(ClientError):
    code = "not_found"


class Ambiguous(ClientError):
    code = "ambiguous"


class JobFailed(ClientError):
    code = "job_failed"


class JobStuck(ClientError):
    code = "job_stuck"


class JobSlow(ClientError):
    code = "job_slow"


class BadSettings(ClientError):
    code = "bad_settings"
