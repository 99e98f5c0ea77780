"""`DINOLoss` on plain tensors, against a double loop over views."""

from __future__ import annotations

import math

import pytest
import torch

from selfpatch.losses import DINOConfig, DINOLoss
from selfpatch.ops.cross_entropy import Scores
from selfpatch.ops.sinkhorn import sinkhorn

G, V, B, E, K = 2, 4, 3, 5, 7
CONFIG = DINOConfig(num_prototypes=K, student_temp=0.2, center_momentum=0.75)


def scores(views: int, seed: int) -> Scores:
    generator = torch.manual_seed(seed)
    bottleneck = torch.randn(views, B, E, generator=generator)
    return Scores(torch.nn.functional.normalize(bottleneck, dim=-1), torch.randn(K, E, generator=generator))


def test_loss_and_gradients_are_those_of_the_loop() -> None:
    criterion, student, teacher = DINOLoss(CONFIG), scores(V, 1), scores(V, 2)
    criterion.center.center.copy_(torch.linspace(-1, 1, K))
    learned = [student.bottleneck.requires_grad_(), student.prototypes.requires_grad_()]
    target = ((teacher.logits() - criterion.center.center) / 0.07).softmax(-1)
    predicted = (student.logits() / 0.2).log_softmax(-1)
    pairs = [-(target[t] * predicted[s]).sum(-1).mean() for t in range(G) for s in range(V) if s != t]
    expected = torch.stack(pairs).mean()
    loss = criterion(student, teacher, teacher_temp=0.07, num_global=G)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, learned), torch.autograd.grad(expected, learned))


@pytest.mark.parametrize("num_global", [None, G])
def test_the_centre_is_the_moving_average_of_every_view_that_the_teacher_saw(num_global: int | None) -> None:
    criterion, student, teacher = DINOLoss(CONFIG), scores(V, 1), scores(3, 2)
    criterion(student, teacher, 0.04, num_global)
    assert not criterion.center.center.any(), "not before the step is over"
    criterion.update()
    torch.testing.assert_close(criterion.center.center, 0.25 * teacher.logits().mean((0, 1)))


def test_sinkhorn_assigns_the_global_views_of_the_batch_together() -> None:
    config = DINOConfig(num_prototypes=K, student_temp=0.2, centering="sinkhorn", sinkhorn_iterations=2)
    criterion, student, teacher = DINOLoss(config), scores(V, 1), scores(V, 2)
    target = sinkhorn(teacher.logits()[:G].flatten(0, 1), 0.07, 2).unflatten(0, (G, B))
    predicted = (student.logits() / 0.2).log_softmax(-1)
    pairs = [-(target[t] * predicted[s]).sum(-1).mean() for t in range(G) for s in range(V) if s != t]
    torch.testing.assert_close(criterion(student, teacher, 0.07, G), torch.stack(pairs).mean())
    criterion.update()
    assert not list(criterion.buffers()), "there is no moving average"
    assert criterion.meters(teacher, 0.07)["entropy"] > 0


def test_meters_show_distributions_between_both_ways_of_collapse() -> None:
    meters = DINOLoss(CONFIG).meters(scores(G, 3), teacher_temp=0.5)
    assert 0 < meters["entropy"] <= meters["mean_entropy"] <= meters["max_entropy"] + 1e-6
    assert meters["max_entropy"] == pytest.approx(math.log(K))
