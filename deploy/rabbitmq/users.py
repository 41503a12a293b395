"""Who may do what on the broker, as RabbitMQ definitions (the JSON of `rabbitmqctl import_definitions`).

One user for each service, one for each host's agent; names on the wire are those of chassis/bus_wire.py. All requests
and replies share one topic exchange, so permissions on names alone would let every agent take another's requests:
*topic* permissions confine who may bind and send which key. An agent

- takes requests with the key `hostagent-<its id>.*` and nothing else,
- answers with `reply.<id of the asker>`, asks nobody,
- tells news as `<event>.v1.<its id>`; the broker also checks that the message's user_id is the connection's user.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

SERVICES = ("inventory", "snapshots", "gateway")
RPC = "nameko-rpc"
HEX = "[0-9a-f]{32}"
NOTHING = "^$"


def definitions(services: Mapping[str, str], agents: Mapping[str, str], vhost: str = "/") -> dict[str, Any]:
    """For these services (name to password) and agents (host id to password), with the exchanges they share."""
    made: dict[str, Any] = {"vhosts": [{"name": vhost}], "users": [], "permissions": [], "topic_permissions": []}
    made["exchanges"] = [_exchange(name, vhost) for name in (RPC, *(f"{s}.events" for s in (*SERVICES, "hostagent")))]
    for name, password in services.items():
        _add(made, (name, password), vhost, service(name), service_topics(name))
    for host_id, password in agents.items():
        _add(made, (agent_user(host_id), password), vhost, agent(host_id), agent_topics(host_id))
    return made


def agent_user(host_id: str) -> str:
    return f"hostagent-{host_id}"


def service(name: str) -> dict[str, str]:
    """Its own queues and retry exchanges, its own news; everybody's news to read."""
    own = rf"rpc-{name}|rpc\.reply-{name}-{HEX}|evt\..+--{name}|(wait|again|parked)--{name}(--[0-9]+)?|amq\.gen-.*"
    return {
        "configure": f"^({own})$",
        "write": rf"^({own}|{RPC}|{name}\.events)$",
        "read": rf"^({own}|{RPC}|[a-z]+\.events)$",
    }


def service_topics(name: str) -> list[dict[str, str]]:
    """A service asks anybody, and takes only what is meant for it."""
    return [{"exchange": RPC, "write": ".+", "read": rf"^({name}\.\*|reply\.{HEX})$"}]


def agent(host_id: str) -> dict[str, str]:
    own = rf"rpc-hostagent-{re.escape(host_id)}|rpc\.reply-hostagent-{re.escape(host_id)}-{HEX}"
    return {
        "configure": f"^({own})$",
        "write": rf"^({own}|{RPC}|hostagent\.events)$",
        "read": f"^({own}|{RPC})$",
    }


def agent_topics(host_id: str) -> list[dict[str, str]]:
    own = re.escape(host_id)
    return [
        {"exchange": RPC, "write": rf"^reply\.{HEX}$", "read": rf"^(hostagent-{own}\.\*|reply\.{HEX})$"},
        {"exchange": "hostagent.events", "write": rf"^[a-z_]+\.v[0-9]+\.{own}$", "read": NOTHING},
    ]


def password_hash(password: str) -> str:
    """RabbitMQ's rabbit_password_hashing_sha256: base64 of a 4-byte salt and SHA-256 of salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def administrator(name: str, password: str, vhost: str = "/") -> dict[str, Any]:
    """Definitions of a user who may do everything, for tests and for a person."""
    made: dict[str, Any] = {"users": [], "permissions": [], "topic_permissions": []}
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    _add(made, (name, password), vhost, everything, [])
    made["users"][0]["tags"] = "administrator"
    return made


def together(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several definitions as one."""
    made: dict[str, Any] = {}
    for part in parts:
        for kind, entries in part.items():
            made.setdefault(kind, []).extend(entries)
    return made


def _add(
    made: dict[str, Any],
    who: tuple[str, str],
    vhost: str,
    names: Mapping[str, str],
    topics: Iterable[Mapping[str, str]],
) -> None:
    user, password = who
    hashed = {"password_hash": password_hash(password), "hashing_algorithm": "rabbit_password_hashing_sha256"}
    made["users"].append({"name": user, "tags": "", **hashed})
    made["permissions"].append({"user": user, "vhost": vhost, **names})
    made["topic_permissions"] += [{"user": user, "vhost": vhost, **topic} for topic in topics]


def _exchange(name: str, vhost: str) -> dict[str, Any]:
    lasting = {"durable": True, "auto_delete": False, "internal": False, "arguments": {}}
    return {"name": name, "vhost": vhost, "type": "topic", **lasting}
