"""schemathesis against the real gateway: whatever is sent, the answer is one that the description declares."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from tests.service.gateway.door import Door

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EXAMPLES = os.environ.get("DRYSTONE_SCHEMA_EXAMPLES", "3")  # per operation; more in a nightly run


def test_no_input_brings_the_api_out_of_its_description(door: Door, tmp_path: pathlib.Path) -> None:
    # not the event stream, which has no end; tests/service/gateway/test_events.py has it
    words = ["--exclude-path", "/api/v1/events", "--checks", CHECKS, "--max-examples", EXAMPLES, "--seed", "1"]
    phases = ["--phases", "coverage,fuzzing", "--generation-database", "none", "--suppress-health-check", "all"]
    ran = subprocess.run(
        [
            str(pathlib.Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{door.address}/api/v1/openapi.json",
            "--header",
            f"Authorization: Bearer {door.token}",
            "--no-color",
            *words,
            *phases,
        ],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
