"""Description of the machine and the software."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core.machine import describe_machine, device_name, num_cores, processor_flags


def test_the_description_names_what_speed_depends_on() -> None:
    described = describe_machine(torch.device("cpu"))
    assert {"python", "selfpatch", "torch", "processor", "cores", "threads", "device"} <= set(described)
    assert described["torch"] == torch.__version__
    assert described["processor"] == device_name(torch.device("cpu")) != ""
    assert described["cores"] == num_cores() >= 1


def test_a_system_without_cpuinfo_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert processor_flags() == set()
    assert device_name(torch.device("cpu"))
