"""The dtype of a forward pass."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core import machine
from selfpatch.core.machine import EMULATED, autocast_dtype, emulates, precision_warning, slowdown


def test_a_precision_names_a_dtype() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("auto", torch.device("mps")) is None


@pytest.mark.parametrize(
    ("flags", "factor", "chosen"),
    [({"avx512_bf16"}, 0.4, torch.bfloat16), ({"avx512_bf16"}, 546.0, None), ({"avx2"}, 0.4, None)],
)
def test_bf16_is_chosen_where_the_instructions_exist_and_are_used(
    flags: set[str], factor: float, chosen: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processor_flags", lambda: flags)
    monkeypatch.setattr(machine, "slowdown", lambda dtype, device: factor)
    assert autocast_dtype("auto", torch.device("cpu")) is chosen


def test_float32_is_no_slower_than_itself() -> None:
    assert slowdown(torch.float32, torch.device("cpu")) == 1.0
    assert not emulates(torch.float32, torch.device("cpu"))
    assert not emulates(torch.bfloat16, torch.device("meta"))


@pytest.mark.parametrize("factor", [0.3, EMULATED, 40.0])
def test_an_emulated_precision_is_warned_of(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(machine, "slowdown", lambda dtype, device: factor)
    assert emulates(torch.bfloat16, cpu) == (factor > EMULATED)
    warning = precision_warning("bf16", cpu)
    if factor > EMULATED:
        assert warning is not None
        assert "bf16 40 times slower than float32" in warning
    else:
        assert warning is None
    assert precision_warning("fp32", cpu) is precision_warning("auto", cpu) is None
