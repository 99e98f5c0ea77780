"""Description of the machine and the software."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core.machine import device_name, processor_flags


def test_a_system_without_cpuinfo_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert processor_flags() == set()
    assert device_name(torch.device("cpu"))
