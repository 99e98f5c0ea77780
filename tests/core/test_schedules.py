"""Factors on the learning rate at their corners."""

from __future__ import annotations

import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from selfpatch.core.schedules import cosine, cosine_factor, epoch_factor, one_cycle_factor, polynomial_factor


def test_cosine_at_both_ends_and_halfway() -> None:
    assert [cosine(step, 10, 2.0, 1.0) for step in (0, 5, 10)] == pytest.approx([2.0, 1.5, 1.0])


def test_factors_on_the_learning_rate() -> None:
    cos = cosine_factor(10, warmup=2, end=0.1)
    assert [cos(0), cos(1), cos(2)] == [0.5, 1.0, 1.0]
    assert cos(6) == pytest.approx(0.55)
    assert cos(10) == pytest.approx(0.1)
    poly = polynomial_factor(10, power=1.0, warmup=2, start=0.0)
    assert poly(0) == 0.0
    assert poly(1) == pytest.approx(0.9 * 0.5)
    assert poly(5) == pytest.approx(0.5)
    assert polynomial_factor(10, power=2.0)(5) == pytest.approx(0.25)


@pytest.mark.parametrize(("peak", "warmup"), [(1e-4, 5), (1e-5, 5), (1e-4, 0)])
def test_the_factor_by_epoch_is_that_of_deits_loop(peak: float, warmup: int) -> None:
    """Over timm's scheduler, which the loop sets after each epoch; a peak of 1e-5 stays there, as with `semi`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    theirs = CosineLRScheduler(
        optimizer, t_initial=30, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, cycle_limit=1, t_in_epochs=True
    )
    ours = epoch_factor(4, 30, warmup=warmup, start=1e-6 / peak, end=1e-5 / peak)
    for epoch in range(30):
        for step in range(4 * epoch, 4 * epoch + 4):
            assert peak * ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        theirs.step(epoch)


def test_one_cycle_is_that_of_dinov3s_loop() -> None:
    """The released loop steps its schedule after every step but the first."""
    warmup, total, rates, count = 6, 40, list[float](), 0
    for step in range(total):
        if count < warmup:
            rates.append((1 - (1 - count / warmup) * (1 - 1e-6)) * (1 - count / total))
        else:
            rates.append((1 + math.cos(math.pi * (count + 1) / total)) / 2)
        count += step > 0
    factor = one_cycle_factor(total, warmup=warmup)
    assert [factor(step) for step in range(total)] == pytest.approx(rates)
    assert rates[0] == rates[1] == pytest.approx(1e-6)
    assert max(rates) < 0.95
