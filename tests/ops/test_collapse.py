"""Collapse meters against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfpatch.ops.collapse import MAX_ROWS, distribution_meters, effective_rank, entropy


class TestEntropy:
    @pytest.mark.parametrize(
        ("probabilities", "expected"),
        [
            ([0.25, 0.25, 0.25, 0.25], math.log(4)),
            ([1.0, 0.0, 0.0, 0.0], 0.0),
            ([0.5, 0.5, 0.0, 0.0], math.log(2)),
            ([0.5, 0.25, 0.125, 0.125], 1.75 * math.log(2)),
        ],
    )
    def test_closed_forms(self, probabilities: list[float], expected: float) -> None:
        assert entropy(torch.tensor(probabilities)).item() == pytest.approx(expected, abs=1e-6)

    def test_shape_and_independent_reference(self) -> None:
        logits = torch.randn(2, 3, 50, dtype=torch.float64)
        expected = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropy(logits.softmax(-1)), expected)


def meters(logits: torch.Tensor, temp: float = 1.0, center: torch.Tensor | None = None) -> dict[str, float]:
    center = torch.zeros(logits.shape[1]) if center is None else center
    return {name: value.item() for name, value in distribution_meters(logits, temp, center).items()}


class TestDistributionMeters:
    def test_uniform_distributions_have_the_largest_entropies(self) -> None:
        expected = pytest.approx(math.log(32), abs=1e-5)
        assert meters(torch.ones(5, 32)) == {"entropy": expected, "mean_entropy": expected, "max_entropy": expected}

    def test_one_prototype_for_all_has_no_entropy_of_the_mean(self) -> None:
        logits = torch.zeros(5, 32)
        logits[:, 3] = 1
        got = meters(logits, temp=0.01)
        assert got["entropy"] == pytest.approx(0, abs=1e-5)
        assert got["mean_entropy"] == pytest.approx(0, abs=1e-5)

    def test_sharp_and_varied_distributions_have_no_entropy_but_that_of_the_mean(self) -> None:
        got = meters(torch.eye(8), temp=0.01)
        assert got["entropy"] == pytest.approx(0, abs=1e-5)
        assert got["mean_entropy"] == pytest.approx(math.log(8), abs=1e-5)

    @pytest.mark.parametrize("shape", [(16,), (1, 16)])
    def test_centre_and_temperature(self, shape: tuple[int, ...]) -> None:
        logits, center, temp = torch.randn(6, 16), torch.randn(16), 0.3
        distributions = torch.distributions.Categorical(logits=(logits - center) / temp)
        mean = torch.distributions.Categorical(probs=distributions.probs.mean(0))
        got = meters(logits, temp, center.reshape(shape))
        assert got["entropy"] == pytest.approx(distributions.entropy().mean().item(), rel=1e-4)
        assert got["mean_entropy"] == pytest.approx(mean.entropy().item(), rel=1e-4)

    def test_half_precision_is_worked_in_float32(self) -> None:
        logits = torch.randn(6, 4096).bfloat16()
        torch.testing.assert_close(meters(logits, 0.1), meters(logits.float(), 0.1))

    @given(n=st.integers(1, 40), k=st.integers(1, 40), seed=st.integers(0, 10**6))
    @settings(max_examples=50)
    def test_entropies_keep_their_bounds(self, n: int, k: int, seed: int) -> None:
        got = meters(3 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed)))
        tolerance = 1e-4
        assert -tolerance <= got["entropy"] <= got["mean_entropy"] + tolerance
        assert got["mean_entropy"] <= min(got["entropy"] + math.log(n), got["max_entropy"]) + tolerance


class TestEffectiveRank:
    @given(n=st.integers(1, 30), d=st.integers(1, 30), seed=st.integers(0, 10**6))
    @settings(max_examples=50)
    def test_orthogonal_rows_or_columns_have_full_rank(self, n: int, d: int, seed: int) -> None:
        tall = torch.randn(max(n, d), min(n, d), generator=torch.Generator().manual_seed(seed))
        basis = torch.linalg.qr(tall).Q
        features = basis if n >= d else basis.T
        assert effective_rank(features).item() == pytest.approx(min(n, d), rel=1e-3)

    def test_known_singular_values(self) -> None:
        """Singular values 4, 2, 1, 1 are the distribution 1/2, 1/4, 1/8, 1/8 of entropy 1.75 log 2."""
        u, v = torch.linalg.qr(torch.randn(20, 4)).Q, torch.linalg.qr(torch.randn(10, 4)).Q
        features = u @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0])) @ v.T
        for scale in (1e-8, 1.0, 1e8):
            assert effective_rank(scale * features).item() == pytest.approx(2**1.75, rel=1e-4)

    @pytest.mark.parametrize("features", [torch.zeros(6, 4), torch.ones(1, 4), torch.randn(384).expand(1024, 384)])
    def test_constant_features_have_rank_one(self, features: torch.Tensor) -> None:
        assert effective_rank(features).item() == pytest.approx(1, abs=0.01)

    def test_rank_of_features_that_are_not_finite_is_nan(self) -> None:
        for bad in (math.nan, math.inf):
            assert effective_rank(torch.tensor([[1.0, bad], [0.0, 1.0]])).isnan()

    def test_rank_in_half_precision_is_that_of_float32(self) -> None:
        features = torch.randn(30, 12).bfloat16()
        torch.testing.assert_close(effective_rank(features), effective_rank(features.float()))

    def test_many_rows_are_sampled_evenly_and_always_alike(self) -> None:
        n, d = 10 * MAX_ROWS, 16
        features = torch.eye(d).repeat_interleave(n // d, dim=0)  # whoever takes only the first rows sees rank 2
        assert effective_rank(features).item() == pytest.approx(d, rel=0.01)
        assert torch.equal(effective_rank(features), effective_rank(features))

    def test_no_gradient_is_kept(self) -> None:
        assert not effective_rank(torch.randn(4, 3, requires_grad=True)).requires_grad


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 3, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a matrix \[n, D\]"):
        effective_rank(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"a matrix \[n, D\]"):
        distribution_meters(torch.zeros(shape), 0.1, torch.zeros(4))
