"""Settings of the front door."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import ClassVar

from chassis.settings import FrameSettings, between, setting


@dataclass(frozen=True)
class GatewaySettings(FrameSettings):
    section: ClassVar[str] = "gateway"

    # Only this machine by default: the token travels in clear text unless tls_cert and tls_key are set.
    http_address: str = setting("127.0.0.1", "address that the HTTP API listens on")
    http_port: int = setting(8480, "port of the HTTP API; 0 takes a free one", check=between(0, 65535))
    tls_cert: pathlib.Path | None = setting(None, "certificate chain (PEM); with tls_key it turns HTTPS on")
    tls_key: pathlib.Path | None = setting(None, "private key (PEM) of tls_cert")
    admin_token_file: pathlib.Path | None = setting(
        None, "file with the admin's token, made at first start; default: admin-token in state_dir"
    )
    # The largest honest body is a VM with 32 NICs, some 10 KiB.
    body_limit: int = setting(1024 * 1024, "largest body of a request in bytes", check=between(1024, 64 * 1024 * 1024))
    # Also the longest that a stuck client can hold a green thread.
    client_timeout: float = setting(60.0, "seconds that a client's connection may be silent", check=between(1, 3600))
    event_buffer: int = setting(2000, "events kept for streams that come back", check=between(10, 1_000_000))
    stream_limit: int = setting(100, "event streams open at the same time", check=between(1, 10_000))
    stream_heartbeat: float = setting(15.0, "seconds between heartbeats of a silent stream", check=between(0.1, 300))

    @property
    def token_file(self) -> pathlib.Path:
        return self.admin_token_file or self.state_dir / "admin-token"
