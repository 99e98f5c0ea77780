"""SwAV's prototypes, and `SwAVLoss` on plain tensors; its values are tested with the method."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from selfpatch.losses import SwAVConfig, SwAVHead, SwAVLoss
from selfpatch.losses.swav import UnitPrototypes

K, E = 7, 5


def test_prototypes_are_put_back_to_norm_one_after_the_step() -> None:
    prototypes = UnitPrototypes(K, E)
    torch.testing.assert_close(prototypes().norm(dim=1), torch.ones(K))
    with torch.no_grad():
        prototypes.weight.add_(torch.randn(K, E, generator=torch.manual_seed(1)))
    moved = prototypes.weight.detach().clone()
    prototypes.discard()
    assert torch.equal(prototypes.weight, moved)
    prototypes.update()
    torch.testing.assert_close(prototypes.weight.detach(), F.normalize(moved, dim=1))


def test_prototypes_have_the_gradient_of_free_vectors() -> None:
    prototypes, upstream = UnitPrototypes(K, E), torch.randn(K, E)
    (gradient,) = torch.autograd.grad((prototypes() * upstream).sum(), prototypes.weight)
    torch.testing.assert_close(gradient, upstream)


def test_the_queues_take_in_the_projections_of_the_global_views_when_a_step_is_over() -> None:
    torch.manual_seed(0)
    config = SwAVConfig(num_prototypes=K, hidden_dim=8, out_dim=E, queue_size=4)
    head, criterion = SwAVHead(6, config), SwAVLoss(config)
    scores = head(torch.randn(3, 4, 6))
    criterion(scores, num_global=2, use_queues=True).backward()
    criterion.update()
    for queue, projections in zip(criterion.queues, scores.bottleneck, strict=False):
        assert torch.equal(queue.keys, projections)
