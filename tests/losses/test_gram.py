"""`GramLoss` on plain tensors, against a loop over images and pairs of patches."""

from __future__ import annotations

import pytest
import torch

from selfpatch.losses import GramConfig, GramLoss
from selfpatch.losses.gram import resize_patches


def patches(seed: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(2, 9, dim, generator=torch.manual_seed(seed))


def test_the_loss_is_that_of_the_loop_and_widths_may_differ() -> None:
    student, teacher = patches(0), patches(1, dim=4)
    cosine = torch.nn.functional.cosine_similarity
    differences = [
        cosine(student[b, i], student[b, j], dim=0) - cosine(teacher[b, i], teacher[b, j], dim=0)
        for b in range(2)
        for i in range(9)
        for j in range(9)
    ]
    torch.testing.assert_close(GramLoss()(student, teacher), torch.stack(differences).square().mean())


def test_a_teacher_of_the_same_similarities_costs_nothing_and_takes_no_gradient() -> None:
    student, rotation = patches(0).requires_grad_(), torch.linalg.qr(patches(3)[0, :6]).Q
    teacher = (3 * student.detach() @ rotation).requires_grad_()
    loss = GramLoss()(student, teacher)
    assert loss < 1e-10
    loss.backward()
    assert teacher.grad is None
    assert GramLoss(GramConfig(normalise=False))(student, teacher) > 1


@pytest.mark.parametrize("negatives", ["keep", "drop", "drop_teacher"])
def test_negative_similarities_count_as_configured(negatives: str) -> None:
    student, teacher = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    expected = {"keep": 0.5, "drop": 0.0, "drop_teacher": 0.5}[negatives]
    assert float(GramLoss(GramConfig(negatives=negatives))(student, teacher)) == pytest.approx(expected)
    swapped = {"keep": 0.5, "drop": 0.0, "drop_teacher": 0.0}[negatives]
    assert float(GramLoss(GramConfig(negatives=negatives))(teacher, student)) == pytest.approx(swapped)


def test_other_numbers_of_patches_are_refused_and_resized() -> None:
    teacher = torch.randn(2, 6, 6, 5, generator=torch.manual_seed(0))
    with pytest.raises(ValueError, match="resize the teacher's map with resize_patches"):
        GramLoss()(patches(0), teacher.flatten(1, 2))
    assert GramLoss()(patches(0), resize_patches(teacher, (3, 3)).flatten(1, 2)) > 0
    torch.testing.assert_close(resize_patches(teacher, (6, 6)), teacher)
