"""Standardised features and their principal components."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfpatch.evaluation.segmentation.projection import fit_projection


@pytest.mark.parametrize("standardise", [False, True])
def test_blocks_give_the_principal_components_of_all(standardise: bool) -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(90, 5)) @ rng.normal(size=(5, 5)) * (1, 10, 0.1, 3, 1) + 7).astype(np.float32)
    projection = fit_projection(torch.from_numpy(features).split(40), 5, 3, standardise=standardise)
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    standard = centred / centred.std(0) if standardise else centred
    left, singular, _ = np.linalg.svd(standard, full_matrices=False)
    expected = (left * singular)[:, :3]
    found = projection(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-4 * np.abs(expected).max())
    assert projection.rank == 5


def test_standardised_features_keep_constant_dimensions_finite() -> None:
    features = torch.randn(50, 3) * torch.tensor([1.0, 0.0, 4.0]) + 2
    projection = fit_projection([features], 3, None, standardise=True)
    standard = projection(features)
    torch.testing.assert_close(standard.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), rtol=1e-4, atol=1e-5)
    assert projection.rank == 2
    assert fit_projection([torch.ones(9, 3)], 3, 2, standardise=True)(torch.ones(4, 3)).abs().max() == 0
