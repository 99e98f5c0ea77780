"""Codes that use every prototype equally: the fast form against the paper's loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfpatch.ops import cross_entropy
from selfpatch.ops import sinkhorn as module
from selfpatch.ops.cross_entropy import Scores, teacher_distribution
from selfpatch.ops.sinkhorn import sinkhorn, sinkhorn_center, sinkhorn_center_reference, sinkhorn_reference


def scores(samples: int = 12, prototypes: int = 5) -> Tensor:
    return torch.rand(samples, prototypes, generator=torch.manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("shape", [(12, 5), (3, 8), (1, 4), (4, 1)])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_are_the_papers(shape: tuple[int, int], epsilon: float, iterations: int) -> None:
    expected = sinkhorn_reference(scores(*shape).double(), epsilon, iterations).float()
    torch.testing.assert_close(sinkhorn(scores(*shape), epsilon, iterations), expected, rtol=1e-4, atol=1e-6)


def test_the_defaults_are_the_published_ones() -> None:
    torch.testing.assert_close(sinkhorn(scores()), sinkhorn(scores(), epsilon=0.05, iterations=3))
    torch.testing.assert_close(sinkhorn_reference(scores()), sinkhorn_reference(scores(), epsilon=0.05, iterations=3))


def test_a_samples_code_sums_to_one_after_any_number_of_iterations() -> None:
    for iterations in (1, 2, 7):
        torch.testing.assert_close(sinkhorn(scores(), 0.05, iterations).sum(1), torch.ones(12))


def test_every_prototype_gets_as_much_after_many_iterations() -> None:
    skewed = scores()
    skewed[:, 0] += 1  # by itself nearly every sample would choose prototype 0
    few, many = sinkhorn(skewed, 0.2, 1), sinkhorn(skewed, 0.2, 200)
    torch.testing.assert_close(many.sum(0), torch.full((5,), 12 / 5))
    assert (few.sum(0) - 12 / 5).abs().max() > 1e-2


def test_a_constant_added_to_a_prototypes_scores_does_not_matter() -> None:
    shift = torch.tensor([3.0, -1.0, 0.5, 0.0, 10.0])
    torch.testing.assert_close(sinkhorn(scores() + shift), sinkhorn(scores()), rtol=1e-3, atol=1e-5)


def test_the_order_of_samples_does_not_matter() -> None:
    order = torch.randperm(12, generator=torch.manual_seed(1))
    torch.testing.assert_close(sinkhorn(scores()[order]), sinkhorn(scores())[order])


def test_identical_samples_are_spread_evenly() -> None:
    torch.testing.assert_close(sinkhorn(scores(1).expand(12, -1)), torch.full((12, 5), 1 / 5))


def test_large_scores_do_not_overflow() -> None:
    large = 10 * scores()
    assert not sinkhorn_reference(large).isfinite().all()
    expected = sinkhorn_reference(large.double()).float()
    torch.testing.assert_close(sinkhorn(large), expected, rtol=1e-3, atol=1e-5)
    assert sinkhorn(1000 * large).isfinite().all()


def test_codes_are_float32_and_have_no_gradient() -> None:
    codes = sinkhorn(scores().bfloat16().requires_grad_())
    assert codes.dtype == torch.float32
    assert not codes.requires_grad


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.0, 3), (-0.1, 3), (0.05, 0)])
def test_invalid_settings_are_refused(epsilon: float, iterations: int) -> None:
    with pytest.raises(ValueError, match=rf"got epsilon {epsilon} and {iterations} iterations; use epsilon > 0"):
        sinkhorn(scores(), epsilon, iterations)


def factors(samples: int = 12) -> Scores:
    generator = torch.manual_seed(3)
    bottleneck, prototypes = torch.randn(samples, 4, generator=generator), torch.randn(5, 4, generator=generator)
    return Scores(bottleneck, prototypes)


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("kept", [0, 2**26])
def test_a_softmax_with_its_centre_is_the_assignment(
    iterations: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_LOGITS", kept)
    monkeypatch.setattr(cross_entropy, "MIN_CHUNK_ROWS", 5)
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", {"cpu": 1})
    for center in (sinkhorn_center, sinkhorn_center_reference):
        found = teacher_distribution(factors(), center(factors(), 0.3, iterations), 0.3)
        torch.testing.assert_close(found, sinkhorn(factors().logits(), 0.3, iterations), rtol=1e-4, atol=1e-6)


def test_a_sharp_centre_neither_overflows_nor_vanishes() -> None:
    center = sinkhorn_center(factors(), 1e-3, 3)
    expected = sinkhorn(factors().logits(), 1e-3, 3)
    torch.testing.assert_close(teacher_distribution(factors(), center, 1e-3), expected, rtol=1e-3, atol=1e-3)


def test_samples_of_mass_0_are_left_out() -> None:
    masses = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0])
    kept = Scores(factors().bottleneck[masses > 0], factors().prototypes)
    for center in (sinkhorn_center, sinkhorn_center_reference):
        torch.testing.assert_close(center(factors(), 0.3, 3, masses), sinkhorn_center(kept, 0.3, 3))


def test_a_centre_without_samples_is_never_used() -> None:
    assert sinkhorn_center(factors(0), 0.1).shape == (5,)
