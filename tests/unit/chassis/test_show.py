"""The settings that a process would start with, as text."""

from __future__ import annotations

import sys

import pytest

from chassis import show

SNAPSHOTS = "services.snapshots.settings"


def test_every_setting_is_shown_with_its_value(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("DRYSTONE_AMQP_URI", "amqp://me:secret@broker//")
    monkeypatch.setattr(sys, "argv", ["show", SNAPSHOTS])
    show.main()
    shown = capsys.readouterr().out
    assert "amqp_uri" in shown
    assert "broker" in shown
    assert "secret" not in shown


def test_bad_settings_are_told_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRYSTONE_HEALTH_PORT", "eighty")
    monkeypatch.setattr(sys, "argv", ["show", SNAPSHOTS])
    with pytest.raises(SystemExit, match="health_port"):
        show.main()
