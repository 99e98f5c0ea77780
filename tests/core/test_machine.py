"""Description of the machine and the software."""

from __future__ import annotations

from email.message import Message

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
    requirements = {
        "selfpatch": [
            "torch>=2",
            "numpy>=2; extra == 'a'",
            "no-such-package>=1; extra == 'b'",
            "selfpatch[a]; extra == 'c'",
            "torch[near, far]>=2; extra == 'd'",
        ],
        "torch": ["numpy", "not-one>=1; extra == 'near'", "numpy; extra == 'far'", "not-two; extra == 'other'"],
    }
    about = Message()
    for extra in "abcd":
        about["Provides-Extra"] = extra
    monkeypatch.setattr(machine.importlib.metadata, "requires", requirements.get)
    monkeypatch.setattr(machine.importlib.metadata, "metadata", lambda name: about)
    assert machine.installed_extras() == {"a": "installed", "b": "lacks no-such-package", "d": "lacks not-one"}
