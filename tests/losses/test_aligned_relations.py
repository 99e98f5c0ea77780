"""`AlignedRelationLoss` on plain tensors, against a loop over images and rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from selfpatch.losses import AlignedRelationConfig, AlignedRelationLoss

CONFIG = AlignedRelationConfig(student_temp=0.3, teacher_temp=0.15)


def patches(seed: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(3, 8, dim, generator=torch.manual_seed(seed))


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over the rows of KL(P || Q) for patches [n, D] of one image."""
    rows = []
    sides = ((teacher, CONFIG.teacher_temp), (student, CONFIG.student_temp))
    units = [F.normalize(x - x.mean(0), dim=1) for x, _ in sides]
    for i in range(len(student)):
        p, q = ((unit @ unit[i] / temp).softmax(0) for unit, (_, temp) in zip(units, sides, strict=True))
        rows.append((p * (p / q).log()).sum())
    return torch.stack(rows).mean()


def test_the_loss_is_the_mean_divergence_of_the_relations() -> None:
    student, teacher = patches(0).requires_grad_(), patches(1, 10)
    expected = torch.stack([divergence(s, t) for s, t in zip(student, teacher, strict=True)]).mean()
    loss = AlignedRelationLoss(CONFIG)(student, teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))


def test_patches_that_are_left_out_count_nowhere() -> None:
    student, teacher, ignored = patches(0).requires_grad_(), patches(1), torch.zeros(3, 8, dtype=torch.bool)
    ignored[0, 5:], ignored[1, 1:] = True, True  # image 1 has one patch left, which has no relation to another
    expected = (divergence(student[0, :5], teacher[0, :5]) + divergence(student[2], teacher[2])) / 2
    loss = AlignedRelationLoss(CONFIG)(student, teacher, ignored)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()
    assert gradient[1].abs().max() == 0
    assert AlignedRelationLoss(CONFIG)(student, teacher, torch.ones_like(ignored)) == 0


def test_equal_relations_cost_nothing() -> None:
    config = AlignedRelationConfig(student_temp=0.2, teacher_temp=0.2)
    student = patches(0)
    rotation = torch.linalg.qr(patches(2)[0, :6]).Q
    assert AlignedRelationLoss(config)(student, 5 * student @ rotation + 1) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = patches(0).to(dtype), patches(1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = AlignedRelationLoss(CONFIG)(student, teacher)
    torch.testing.assert_close(loss, AlignedRelationLoss(CONFIG)(student.float(), teacher.float()))
