"""Description of the machine and the software."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core import machine
from selfpatch.core.machine import device_name, processor_flags


def test_a_system_without_cpuinfo_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert processor_flags() == set()
    assert device_name(torch.device("cpu"))


def test_extras_that_lack_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "torch>=2",
        "numpy>=2; extra == 'a'",
        "no-such-package>=1; extra == 'b'",
        "selfpatch[a]; extra == 'c'",
    ]
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: requirements)
    assert machine.installed_extras() == {"a": "installed", "b": "lacks no-such-package"}
