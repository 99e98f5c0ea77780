"""Losses of distillation on plain tensors, against loops over images and patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.losses import (
    ImageSimilarityLoss,
    PatchDistillationConfig,
    PatchDistillationLoss,
    PatchSimilarityLoss,
)
from selfpatch.losses.distill import resize_bilinear

D, D_T, TEMP = 5, 7, 0.5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def kl(target: Tensor, predicted: Tensor) -> Tensor:
    p, q = (x.softmax(0) for x in (target, predicted))
    return sum((p[k] * (p[k] / q[k]).log() for k in range(len(p))), torch.zeros(()))


def cosines(x: Tensor, others: Tensor) -> Tensor:
    return torch.stack([torch.cosine_similarity(x, other, dim=0) for other in others])


@pytest.mark.parametrize("weights", [(0.9, 0.1, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 2.0), (0.5, 0.5, 0.5)])
def test_matched_patches_are_those_of_the_loop(weights: tuple[float, float, float]) -> None:
    cosine, smooth_l1, mse = weights
    criterion = PatchDistillationLoss(D, D_T, PatchDistillationConfig(cosine=cosine, smooth_l1=smooth_l1, mse=mse))
    student, teacher = draw(2, 3, 3, D), draw(2, 3, 3, D_T, seed=1).requires_grad_()
    losses = []
    for x, t in zip(criterion.projection(student).flatten(0, 2), teacher.detach().flatten(0, 2), strict=True):
        difference = (x - t).abs()
        smooth = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
        losses.append(cosine * (1 - torch.cosine_similarity(x, t, dim=0)) + smooth_l1 * smooth)
        losses[-1] = losses[-1] + mse * (difference**2).mean()
    loss = criterion(student, teacher)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()
    assert teacher.grad is None
    assert criterion.projection.weight.grad is not None


def test_the_students_map_is_resized_to_the_teachers() -> None:
    ramp = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 1)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])  # half-pixel centres, clamped at the border
    torch.testing.assert_close(resize_bilinear(ramp, (8, 3)), expected.view(1, 8, 1, 1).expand(1, 8, 3, 1))
    criterion = PatchDistillationLoss(D, D_T)
    assert criterion(draw(2, 3, 4, D), draw(2, 5, 6, D_T, seed=1)) > 0


def test_one_cosine_per_image_differs() -> None:
    student, teacher = draw(2, 3, 3, D), draw(2, 3, 3, D_T, seed=1)
    config = PatchDistillationConfig(cosine=1, smooth_l1=0, cosine_over="image")
    criterion = PatchDistillationLoss(D, D_T, config)
    x = criterion.projection(student)
    expected = [1 - torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in zip(x, teacher, strict=True)]
    torch.testing.assert_close(criterion(student, teacher), torch.stack(expected).mean())


def test_similarities_of_patches_are_those_of_the_loop() -> None:
    criterion = PatchSimilarityLoss(D, D_T, TEMP)
    student, teacher = draw(2, 2, 3, D).requires_grad_(), draw(2, 2, 3, D_T, seed=1).requires_grad_()
    x, t = criterion.projection(student).flatten(1, 2), teacher.detach().flatten(1, 2)
    rows = [kl(cosines(t[b, i], t[b]) / TEMP, cosines(x[b, i], x[b]) / TEMP) for b in range(2) for i in range(6)]
    expected, loss = torch.stack(rows).mean(), criterion(student, teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))
    assert criterion(student, draw(2, 4, 4, D_T)) > 0


def test_equal_similarities_cost_nothing() -> None:
    criterion, rotation = PatchSimilarityLoss(D, D), torch.linalg.qr(draw(D, D)).Q
    torch.nn.init.eye_(criterion.projection.weight)
    torch.nn.init.zeros_(criterion.projection.bias)
    student = draw(2, 3, 3, D)
    assert criterion(student, 3 * student @ rotation).abs() < 1e-6


def test_similarities_of_images_are_those_of_the_loop_over_batch_and_queue() -> None:
    criterion = ImageSimilarityLoss(D, D_T, queue_size=6, temp=TEMP)
    earlier: list[Tensor] = []
    for step in range(3):  # the queue holds 4, 6 and 6 images
        student, teacher = draw(4, D, seed=step).requires_grad_(), draw(4, D_T, seed=10 + step).requires_grad_()
        x, keys = criterion.projection(student), [*teacher.detach(), *earlier][:6]
        rows = [
            kl(cosines(teacher[i].detach(), torch.stack(keys)) / TEMP, cosines(x[i], torch.stack(keys)) / TEMP)
            for i in range(4)
        ]
        expected, loss = torch.stack(rows).mean(), criterion(student, teacher)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, student, retain_graph=True), torch.autograd.grad(expected, student)
        )
        loss.backward()
        assert teacher.grad is None
        criterion.update()
        earlier = keys
    torch.testing.assert_close(criterion.queue.features, F.normalize(torch.stack(earlier), dim=1))


def test_no_weight_and_no_queue_are_refused() -> None:
    with pytest.raises(ValueError, match="all weights of patch distillation are 0; give cosine, smooth_l1 or mse"):
        PatchDistillationConfig(cosine=0, smooth_l1=0)
    with pytest.raises(ValueError, match="queue_size is 0, but images are compared with those of the queue; use 8192"):
        ImageSimilarityLoss(D, D_T, queue_size=0)
