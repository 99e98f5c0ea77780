"""SigLoss and the gradient loss by plain loops, warm-up, and maps without a valid pixel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfpatch.losses.depth import SigLoss, gradient_log_loss, sig_loss


def maps(seed: int = 0, height: int = 13, width: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    prediction, depth = (torch.rand(2, 1, height, width, generator=random) * 9 + 0.1 for _ in range(2))
    return prediction, depth, torch.rand(2, 1, height, width, generator=random) < 0.8


def test_sig_loss_equals_a_plain_loop() -> None:
    prediction, depth, valid = maps()
    errors = [
        math.log(p + 0.001) - math.log(d + 0.001)
        for p, d, v in zip(*(x.flatten().tolist() for x in (prediction, depth, valid)), strict=True)
        if v
    ]
    mean = sum(errors) / len(errors)
    squares = sum((error - mean) ** 2 for error in errors)
    for unbiased in (True, False):
        expected = math.sqrt(squares / (len(errors) - unbiased) + 0.15 * mean**2)
        assert float(sig_loss(prediction, depth, valid, unbiased=unbiased)) == pytest.approx(expected, rel=1e-5)


def test_gradient_loss_equals_a_plain_loop() -> None:
    prediction, depth, valid = maps()
    expected = 0.0
    for step in (1, 2, 4, 6):
        total, count = 0.0, 0
        for image in range(2):
            rows, columns = range(0, 13, step), range(0, 15, step)
            at = {
                (i, j): math.log(prediction[image, 0, y, x] + 0.001) - math.log(depth[image, 0, y, x] + 0.001)
                for i, y in enumerate(rows)
                for j, x in enumerate(columns)
                if valid[image, 0, y, x]
            }
            count += len(at)
            total += sum(abs(g - at[i + 2, j]) for (i, j), g in at.items() if (i + 2, j) in at)
            total += sum(abs(g - at[i, j + 2]) for (i, j), g in at.items() if (i, j + 2) in at)
        expected += total / count
    assert float(gradient_log_loss(prediction, depth, valid)) == pytest.approx(expected, rel=1e-5)


def test_a_wrong_scale_costs_little_and_a_wrong_shape_much() -> None:
    _, depth, valid = maps()
    scaled, shaped = depth * 2, depth.clone()
    shaped[..., ::2, :] *= 4
    assert sig_loss(depth, depth, valid) == 0
    assert float(sig_loss(scaled, depth, valid)) == pytest.approx(0.15**0.5 * math.log(2), rel=1e-2)
    assert sig_loss(shaped, depth, valid) > 2 * sig_loss(scaled, depth, valid)
    assert gradient_log_loss(scaled, depth, valid) < 0.1


def test_the_variance_counts_after_the_warm_up() -> None:
    prediction, depth, valid = maps()
    criterion = SigLoss(warmup=2)
    losses = [float(criterion(prediction, depth, valid)) for _ in range(3)]
    without = float(sig_loss(prediction, depth, valid, variance_weight=0.0))
    assert losses == pytest.approx([without, without, float(sig_loss(prediction, depth, valid))])
    assert losses[2] > losses[0]
    restored = SigLoss(warmup=2)
    restored.load_state_dict(criterion.state_dict())
    assert float(restored(prediction, depth, valid)) == pytest.approx(losses[2])


def test_invalid_pixels_change_neither_loss_nor_gradient() -> None:
    prediction, depth, valid = maps()
    unknown = torch.where(valid, depth, 0.0)
    for loss in (sig_loss, gradient_log_loss):
        first, second = prediction.clone().requires_grad_(), prediction.clone().requires_grad_()
        values = loss(first, depth, valid), loss(second, unknown, valid)
        assert values[0] == values[1]
        gradients = [torch.autograd.grad(v, x)[0] for v, x in zip(values, (first, second), strict=True)]
        torch.testing.assert_close(gradients[0], gradients[1])
        assert not gradients[0][~valid].any()


@pytest.mark.parametrize("count", [0, 1])
def test_few_valid_pixels_give_finite_gradients(count: int) -> None:
    prediction, depth, valid = maps()
    valid = torch.zeros_like(valid)
    valid.view(-1)[:count] = True
    prediction.requires_grad_()
    for value in (sig_loss(prediction, depth, valid), gradient_log_loss(prediction, depth, valid)):
        (gradient,) = torch.autograd.grad(value, prediction)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert count or value == 0


def test_small_maps_have_nothing_to_compare() -> None:
    prediction, depth, valid = maps(height=2, width=1)
    assert gradient_log_loss(prediction, depth, valid) == 0
