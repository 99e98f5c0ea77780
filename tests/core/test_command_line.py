"""The command that a record names."""

from __future__ import annotations

import sys

import pytest

from selfpatch.core.command_line import current_command, running


def test_the_program_is_named_inside_and_the_script_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train it.py", "--fast"])
    assert current_command() == "python 'train it.py' --fast"
    with running(["bench", "ops"]):
        assert current_command() == "selfpatch bench ops"
    assert current_command() == "python 'train it.py' --fast"
