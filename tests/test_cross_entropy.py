"""Losses over prototypes against explicit loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from selfpatch.ops.cross_entropy import (
    Scores,
    cross_view_loss,
    cross_view_loss_reference,
    soft_cross_entropy,
    teacher_distribution,
)


def scores(*leading: int, prototypes: int = 7, width: int = 5) -> Scores:
    generator = torch.manual_seed(3)
    return Scores(
        torch.randn(*leading, width, generator=generator), torch.randn(prototypes, width, generator=generator)
    )


def targets_and_logits(G: int, V: int, B: int = 3, K: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.manual_seed(G + 10 * V)
    target = torch.randn(G, B, K, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    return target, torch.randn(V, B, K, generator=generator, dtype=torch.float64).mul(5)


def test_soft_cross_entropy_is_entropy_plus_divergence() -> None:
    target, logits = targets_and_logits(2, 2)
    teacher, student = Categorical(probs=target), Categorical(logits=logits)
    expected = teacher.entropy() + torch.distributions.kl_divergence(teacher, student)
    torch.testing.assert_close(soft_cross_entropy(target, logits), expected)


def test_soft_cross_entropy_survives_large_logits() -> None:
    loss = soft_cross_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1000.0, 0.0]))
    torch.testing.assert_close(loss, torch.tensor(1000.0))


def test_teacher_distribution_centres_and_sharpens() -> None:
    given, center = scores(2, 3), torch.linspace(-1, 1, 7)
    weights = ((given.bottleneck @ given.prototypes.T - center) / 0.07).exp()
    torch.testing.assert_close(teacher_distribution(given, center, 0.07), weights / weights.sum(-1, keepdim=True))


@pytest.mark.parametrize(("G", "V"), [(2, 2), (2, 3), (2, 10), (1, 4), (3, 5)])
def test_cross_view_loss_is_the_mean_over_pairs_of_different_views(G: int, V: int) -> None:
    target, logits = targets_and_logits(G, V)
    by_loop, pairs = 0.0, 0
    for t in range(G):
        for s in range(V):
            if s != t:
                log_probabilities = logits[s].log_softmax(-1)
                for b in range(target.shape[1]):
                    by_loop -= float(target[t, b] @ log_probabilities[b])
                    pairs += 1
    assert pairs == (G * V - G) * target.shape[1]
    for loss in (cross_view_loss, cross_view_loss_reference):
        assert float(loss(target, logits)) == pytest.approx(by_loop / pairs, rel=1e-12)


@pytest.mark.parametrize(("G", "V"), [(2, 2), (2, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_cross_view_loss_equals_its_reference_and_so_do_its_gradients(
    G: int, V: int, dtype: torch.dtype, tolerance: float
) -> None:
    target, logits = (x.to(dtype) for x in targets_and_logits(G, V))
    results = []
    for loss_of in (cross_view_loss, cross_view_loss_reference):
        given = logits.clone().requires_grad_()
        loss = loss_of(target, given)
        results.append((loss.detach(), torch.autograd.grad(loss, given)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def test_cross_view_loss_leaves_out_the_same_view() -> None:
    """With one target only, the logits of that view get no gradient."""
    target, logits = targets_and_logits(1, 3)
    (gradient,) = torch.autograd.grad(cross_view_loss(target, logits.requires_grad_()), logits)
    assert not gradient[0].any()
    assert gradient[1:].flatten(1).any(1).all()


@pytest.mark.parametrize("leading", [(4,), (3, 4)])
def test_mean_logits_is_the_mean_of_the_logits(leading: tuple[int, ...]) -> None:
    given = scores(*leading)
    torch.testing.assert_close(given.mean_logits(), given.logits().flatten(0, -2).mean(0))


def test_mean_logits_keeps_float32_under_autocast() -> None:
    given = scores(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mean = given.mean_logits()
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, given.logits().flatten(0, -2).mean(0))


def test_selected_scores_are_the_first_ones() -> None:
    given = scores(5, 2)
    assert torch.equal(given.select(2).logits(), given.logits()[:2])
