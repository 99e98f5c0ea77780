"""`AlignedContrastLoss` on plain tensors, against a loop over images and patches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from selfpatch.losses import AlignedContrastLoss

TEMP = 0.3


def patches(seed: int) -> torch.Tensor:
    return torch.randn(3, 8, 6, generator=torch.manual_seed(seed))


def contrast(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over the patches [n, D] of one image of the cross-entropy with the patch at the same position."""
    rows = [
        F.cross_entropy(torch.stack([torch.cosine_similarity(s, t, dim=0) / TEMP for t in teacher]), torch.tensor(i))
        for i, s in enumerate(student)
    ]
    return torch.stack(rows).mean()


def test_the_loss_is_the_mean_contrast_within_images() -> None:
    student, teacher = patches(0).requires_grad_(), patches(1).requires_grad_()
    expected = torch.stack([contrast(s, t) for s, t in zip(student, teacher.detach(), strict=True)]).mean()
    loss = AlignedContrastLoss(TEMP)(student, teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))
    loss = AlignedContrastLoss(TEMP)(student, teacher)
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)


def test_patches_that_are_left_out_count_nowhere() -> None:
    student, teacher, ignored = patches(0).requires_grad_(), patches(1), torch.zeros(3, 8, dtype=torch.bool)
    ignored[0, 5:], ignored[1, 1:] = True, True  # image 1 has one patch left, which has no negatives
    expected = (contrast(student[0, :5], teacher[0, :5]) + contrast(student[2], teacher[2])) / 2
    loss = AlignedContrastLoss(TEMP)(student, teacher, ignored)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()
    assert gradient[1].abs().max() == gradient[0, 5:].abs().max() == 0
    assert AlignedContrastLoss(TEMP)(student, teacher, torch.ones_like(ignored)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = patches(0).to(dtype), patches(1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = AlignedContrastLoss(TEMP)(student, teacher)
    torch.testing.assert_close(loss, AlignedContrastLoss(TEMP)(student.float(), teacher.float()))
