"""The process in which every storage call runs: JSON lines in, JSON lines out, one at a time.

    {"id": 7, "op": "mark", "args": {...}}  ->  {"id": 7, "ok": {...}} or {"id": 7, "error": {"code", "fields"}}

It ends when its input ends. It imports the standard library, the error tree and the storage modules only: it is
small (about 15 MiB) and starts fast, because a new one is made whenever one hangs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from contracts import errors
from services.hostagent import (
    chain_record,
    copying,
    creation,
    discard,
    domain,
    layout,
    merging,
    naming,
    pulling,
    scan,
    thin,
    volume,
)


def _sanlock(name: str) -> Callable[..., dict[str, Any] | None]:
    """A function of sanlocks.py, imported when it is first asked for: a host without the binding does all the rest."""

    def run(**args: Any) -> dict[str, Any] | None:
        try:
            from services.hostagent import sanlocks
        except ImportError:
            reason, advice = "its Python has no binding of sanlock", "Install python3-sanlock there."
            raise errors.LeasesUnfit(host_id="?", reason=reason, advice=advice) from None
        answer: dict[str, Any] | None = getattr(sanlocks, name)(**args)
        return answer

    return run


OPS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "create_domain": domain.create,
    "look_domain": domain.look,
    "delete_domain": domain.delete,
    "scan": scan.scan,
    "referrers": scan.referrers,
    "create_volume": creation.create,
    "create_thin": thin.create_thin,
    "copy_volume": copying.copy_volume,
    "look_copy": copying.look_copy,
    "volumes": volume.view,
    "prepare_mark": volume.prepare_mark,
    "mark": volume.mark,
    "record_merge": merging.record_merge,
    "unrecorded": merging.unrecorded,
    "record_pull": pulling.record_pull,
    "put_back": merging.put_back,
    "look_grown": naming.look_grown,
    "make_bare": naming.make_bare,
    "wait_idle": merging.wait_idle,
    "record_chain": chain_record.record_chain,
    "check_variables": volume.check_variables,
    "resize": volume.resize,
    "discard": discard.discard,
    "delete_image": discard.delete_image,
    "look_lockspace": _sanlock("look"),
    "join_lockspace": _sanlock("join"),
    "leave_lockspace": _sanlock("leave"),
    "look_host_record": _sanlock("record"),
    "ensure_lease": _sanlock("ensure"),
    "drop_lease": _sanlock("drop"),
    "lease_owner": _sanlock("owner"),
    "lease_held": _sanlock("held"),
    "lease_ready": _sanlock("ready"),
    "find_lease": _sanlock("find"),
    "lease_version": _sanlock("version"),
}


_IDS = {
    *("image", "volume", "parent", "base", "top", "child", "heir", "ground", "stands_on", "vm"),
    *("source_image", "template_image", "template_volume"),
}
_LISTS = {"volumes", "between", "below", "ids", "unused"}


def _check(args: dict[str, Any]) -> None:
    """Ids become path names and words become marks: nothing else may, whoever asks."""
    wrong = {name: ["Not a UUID."] for name in _IDS & set(args) if not layout.is_uuid(args[name] or layout.BLANK)}
    wrong |= {name: ["Not UUIDs."] for name in _LISTS & set(args) if not all(map(layout.is_uuid, args[name]))}
    for name in {"domain", "source_domain"} & set(args):
        if not layout.is_uuid(args[name]["id"]):
            wrong[name] = ["Its id is not a UUID."]
    if args.get("legality", "legal") not in layout.LEGALITIES.values():
        wrong["legality"] = ["Not a mark."]
    if wrong:
        raise errors.BadRequest(errors=wrong)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request; every outcome is an answer."""
    try:
        _check(request["args"])
        return {"id": request["id"], "ok": OPS[request["op"]](**request["args"]) or {}}
    except errors.Problem as problem:
        return {"id": request["id"], "error": problem.to_wire()}
    except Exception:  # a bug of ours: it is logged with its trace and the caller learns where to look
        correlation_id = str(uuid.uuid4())
        print(f"storage {request.get('op')} failed, correlation id {correlation_id}", file=sys.stderr)  # noqa: T201
        traceback.print_exc()
        return {"id": request.get("id"), "error": errors.InternalError(correlation_id=correlation_id).to_wire()}


def main() -> None:
    os.umask(0o002)  # the storage's group shares its folders
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which then closes our input
    for line in sys.stdin.buffer:
        reply = json.dumps(answer(json.loads(line)))
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
