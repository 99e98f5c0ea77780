"""`AlignedRelationLoss` on plain tensors, against a loop over images and rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from selfpatch.losses import AlignedRelationConfig, AlignedRelationLoss

CONFIG = AlignedRelationConfig(student_temp=0.3, teacher_temp=0.15)
FORMS = ("teacher", "own", "targets")


def patches(seed: int) -> torch.Tensor:
    return torch.randn(3, 8, 6, generator=torch.manual_seed(seed))


def divergence(form: str, student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over the rows of KL(P || Q) for patches [n, D] of one image."""
    mean = teacher.mean(0)
    t = F.normalize(teacher - mean, dim=1)
    s = F.normalize(student - (student.mean(0) if form == "own" else mean), dim=1)
    y = F.normalize(targets - mean, dim=1) if form == "targets" else t
    rows = []
    for i in range(len(student)):
        p = (t @ y[i] / CONFIG.teacher_temp).softmax(0)
        q = ((s if form == "own" else t) @ s[i] / CONFIG.student_temp).softmax(0)
        rows.append((p * (p / q).log()).sum())
    return torch.stack(rows).mean()


def loss_of(form: str, *tensors: torch.Tensor, ignored: torch.Tensor | None = None) -> torch.Tensor:
    student, teacher, targets = tensors
    loss = AlignedRelationLoss(replace(CONFIG, anchors="own" if form == "own" else "teacher"))
    return loss(student, teacher, ignored, targets=targets if form == "targets" else None)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_mean_divergence_of_the_relations(form: str) -> None:
    tensors = patches(0).requires_grad_(), patches(1), patches(2)
    expected = torch.stack([divergence(form, *image) for image in zip(*tensors, strict=True)]).mean()
    loss = loss_of(form, *tensors)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, tensors[0]), torch.autograd.grad(expected, tensors[0]))


@pytest.mark.parametrize("form", FORMS)
def test_patches_that_are_left_out_count_nowhere(form: str) -> None:
    tensors, ignored = (patches(0).requires_grad_(), patches(1), patches(2)), torch.zeros(3, 8, dtype=torch.bool)
    ignored[0, 5:], ignored[1, 1:] = True, True  # image 1 has one patch left, which has no relation to another
    first, third = ([x[b, :n] for x in tensors] for b, n in ((0, 5), (2, 8)))
    expected = (divergence(form, *first) + divergence(form, *third)) / 2
    loss = loss_of(form, *tensors, ignored=ignored)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, tensors[0])
    assert gradient.isfinite().all()
    assert gradient[1].abs().max() == 0
    assert loss_of(form, *tensors, ignored=torch.ones_like(ignored)) == 0


def test_own_relations_allow_a_rotation_and_anchored_ones_do_not() -> None:
    student, rotation = patches(0), torch.linalg.qr(patches(2)[0, :6]).Q
    temps = {"student_temp": 0.2, "teacher_temp": 0.2}
    own, anchored = (AlignedRelationLoss(AlignedRelationConfig(anchors=x, **temps)) for x in ("own", "teacher"))
    assert own(student, 5 * student @ rotation + 1) < 1e-5
    assert anchored(student, student) < 1e-5
    assert anchored(student, student @ rotation) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = patches(0).to(dtype), patches(1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = AlignedRelationLoss(CONFIG)(student, teacher)
    torch.testing.assert_close(loss, AlignedRelationLoss(CONFIG)(student.float(), teacher.float()))
