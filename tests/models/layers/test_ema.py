"""The moving average that a teacher is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfpatch.core.reference import use_references
from selfpatch.models.layers.ema import ema_update


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(3, 2).requires_grad_(False), nn.Linear(3, 2)


@pytest.mark.parametrize("ok", [None, True, False])
def test_the_average_moves_by_the_momentum_where_the_step_was_finite(ok: bool | None) -> None:
    flag = None if ok is None else torch.tensor(ok)
    average, source = networks()
    expected = average.weight if ok is False else 0.9 * average.weight + 0.1 * source.weight
    expected = expected.detach().clone()
    ema_update(average, source, 0.9, flag)
    torch.testing.assert_close(average.weight, expected)
    twin, source = networks()
    with use_references():
        ema_update(twin, source, 0.9, flag)
    torch.testing.assert_close(average.state_dict(), twin.state_dict())
