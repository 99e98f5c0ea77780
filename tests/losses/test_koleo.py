"""`KoLeoLoss` on plain tensors, against a double loop."""

from __future__ import annotations

import pytest
import torch

from selfpatch.losses import KoLeoConfig, KoLeoLoss


def features(views: int = 2, images: int = 7) -> torch.Tensor:
    return torch.randn(views, images, 5, generator=torch.manual_seed(0))


def test_the_loss_is_that_of_the_loop() -> None:
    x = features()
    expected = torch.zeros(())
    for view in x:
        y = view / view.norm(dim=1, keepdim=True)
        for i in range(len(y)):
            j = max((j for j in range(len(y)) if j != i), key=lambda j: float(y[i] @ y[j]))
            expected -= (y[i] - y[j]).norm().log() / len(y)
    torch.testing.assert_close(KoLeoLoss()(x), expected)
    torch.testing.assert_close(KoLeoLoss()(x[0]) + KoLeoLoss()(x[1]), expected)


def test_groups_are_batches_of_their_own() -> None:
    x, criterion = features(images=6), KoLeoLoss(KoLeoConfig(group_size=2))
    expected = torch.stack([KoLeoLoss()(x[:, i : i + 2]) for i in (0, 2, 4)]).mean()
    torch.testing.assert_close(criterion(x), expected)
    with pytest.raises(ValueError, match=r"koleo\.group_size is 2, which does not divide the 7 images"):
        criterion(features())


def test_features_move_apart() -> None:
    x = features(1, 6)[0].requires_grad_()
    criterion = KoLeoLoss()
    before = criterion(x)
    (gradient,) = torch.autograd.grad(before, x)
    assert criterion(x - 0.1 * gradient) < before


def test_equal_features_have_a_finite_loss_and_gradient() -> None:
    x = torch.ones(4, 3, requires_grad=True)
    loss = KoLeoLoss()(x)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="there is only one; use a batch size of 2 or more"):
        KoLeoLoss()(features(2, 1))
