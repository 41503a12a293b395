"""HTTPS by two settings."""

from __future__ import annotations

import pathlib
import socket
import ssl
import subprocess

import httpx

from tests.service.gateway.door import Door

NO_BROKER = "amqp://127.0.0.1:9//"


def certificate(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    asked = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*asked, "-keyout", str(key), "-out", str(cert), *names], check=True, capture_output=True)
    return cert, key


def test_https_serves_beside_a_client_that_never_shakes_hands(folder: pathlib.Path) -> None:
    cert, key = certificate(folder)
    door = Door(folder, NO_BROKER, {"TLS_CERT": str(cert), "TLS_KEY": str(key)}).start()
    try:
        assert door.address.startswith("https://")
        host, _, port = door.address.removeprefix("https://").partition(":")
        with socket.create_connection((host, int(port))):
            trusted = ssl.create_default_context(cafile=str(cert))
            answer = httpx.get(f"{door.address}/healthz", verify=trusted, trust_env=False, timeout=20)
        assert answer.json() == {"status": "ok"}
        assert door.command("health", environ={"DRYSTONE_CA_FILE": str(cert)}).code == 6
        stranger = door.command("health")
        assert (stranger.code, "CERTIFICATE_VERIFY_FAILED" in stranger.err) == (6, True)
    finally:
        assert door.stop() == 0


def test_a_key_that_is_none_ends_the_gateway_with_a_sentence(folder: pathlib.Path) -> None:
    cert, _ = certificate(folder)
    door = Door(folder, NO_BROKER, {"TLS_CERT": str(cert), "TLS_KEY": "/nonexistent"})
    assert door.spawn().wait(30) != 0
    assert "cannot listen" in door.log
