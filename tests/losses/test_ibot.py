"""`IBOTPatchLoss` on plain tensors, against a loop over masked patches."""

from __future__ import annotations

import pytest
import torch

from selfpatch.losses import IBOTConfig, IBOTPatchLoss
from selfpatch.ops.cross_entropy import Scores
from selfpatch.ops.sinkhorn import sinkhorn

B, H, W, E, K = 3, 2, 4, 5, 7
CONFIG = IBOTConfig(num_prototypes=K, student_temp=0.2, center_momentum=0.75)


def scores(seed: int) -> Scores:
    generator = torch.manual_seed(seed)
    return Scores(torch.randn(B, H, W, E, generator=generator), torch.randn(K, E, generator=generator))


def masks() -> torch.Tensor:
    masks = torch.rand(B, H, W, generator=torch.manual_seed(0)) < 0.5
    masks[1] = False
    return masks


def test_the_loss_is_the_mean_over_the_masked_patches_of_a_view_then_over_views() -> None:
    criterion, student, teacher = IBOTPatchLoss(CONFIG), scores(1), scores(2)
    criterion.center.center.copy_(torch.linspace(-1, 1, K))
    target = ((teacher.logits() - criterion.center.center) / 0.07).softmax(-1)
    each = -(target * (student.logits() / 0.2).log_softmax(-1)).sum(-1)
    per_view = [each[b][masks()[b]].mean() if masks()[b].any() else torch.zeros(()) for b in range(B)]
    torch.testing.assert_close(criterion(student, teacher, masks(), 0.07), torch.stack(per_view).mean())


def test_the_centre_is_that_of_all_patches() -> None:
    criterion, teacher = IBOTPatchLoss(CONFIG), scores(2)
    criterion(scores(1), teacher, masks(), 0.07)
    criterion.update()
    torch.testing.assert_close(criterion.center.center, 0.25 * teacher.logits().mean((0, 1, 2)))


@pytest.mark.parametrize("on", ["masked", "all"])
@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_patches_of_masked_views_learn(on: str, centering: str) -> None:
    config = IBOTConfig(num_prototypes=K, student_temp=0.2, patch_loss_on=on, centering=centering)
    criterion, student, teacher = IBOTPatchLoss(config), scores(1), scores(2)
    counted = masks() if on == "masked" else torch.tensor([True, False, True])[:, None, None].expand(B, H, W)
    target = (teacher.logits() / 0.07).softmax(-1)
    if centering == "sinkhorn":
        target[counted] = sinkhorn(teacher.logits()[counted], 0.07, 3)
    each = -(target * (student.logits() / 0.2).log_softmax(-1)).sum(-1)
    per_view = [each[b][counted[b]].mean() if counted[b].any() else torch.zeros(()) for b in range(B)]
    torch.testing.assert_close(criterion(student, teacher, masks(), 0.07), torch.stack(per_view).mean())


def test_a_batch_without_masks_costs_nothing() -> None:
    criterion, student = IBOTPatchLoss(IBOTConfig(num_prototypes=K, centering="sinkhorn")), scores(1)
    student.prototypes.requires_grad_()
    student.bottleneck.requires_grad_()
    loss = criterion(student, scores(2), torch.zeros(B, H, W, dtype=torch.bool), 0.07)
    loss.backward()
    assert loss == 0
    assert student.prototypes.grad is not None
    assert not student.prototypes.grad.any()
