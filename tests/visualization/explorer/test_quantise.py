"""Quantised features against exact cosines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.visualization.explorer.quantise import QuantisedFeatures, cosines, quantise


def features(num_patches: int = 200, dim: int = 32) -> Tensor:
    """Unit features whose directions differ in strength."""
    generator = torch.Generator().manual_seed(0)
    strengths = torch.linspace(1, 0.05, dim)
    return F.normalize(torch.randn(num_patches, dim, generator=generator) * strengths + 0.5, dim=-1)


def all_cosines(q: QuantisedFeatures) -> Tensor:
    return cosines(q.codes, q.scales, q.offsets, q.mean_square, torch.arange(len(q.codes)))


def test_the_stated_error_is_that_of_all_pairs() -> None:
    x = features()
    quantised = quantise(x, 12)
    error = all_cosines(quantised) - x.double() @ x.double().T
    assert quantised.codes.dtype == torch.int8
    assert quantised.codes.shape == (200, 12)
    assert quantised.max_error == pytest.approx(float(error.abs().max()))
    assert quantised.rms_error == pytest.approx(float(error.square().mean().sqrt()))
    assert 0 < quantised.rms_error < quantised.max_error < 0.3


def test_more_components_are_more_exact_and_all_of_them_leave_rounding_alone() -> None:
    errors = [quantise(features(), components).rms_error for components in (4, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3
    assert quantise(features(), 500).codes.shape == (200, 32)


def test_small_differences_of_features_that_are_nearly_equal_survive() -> None:
    x = F.normalize(torch.ones(32) + 0.03 * features(), dim=-1)
    exact = x.double() @ x.double().T
    assert quantise(x, 32).rms_error < 0.02 * float(exact.std())


def test_features_that_are_equal() -> None:
    quantised = quantise(F.normalize(torch.ones(5, 8), dim=-1), 8)
    assert all_cosines(quantised) == pytest.approx(1, abs=1e-6)
