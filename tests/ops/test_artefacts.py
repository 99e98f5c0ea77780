"""Tokens of high norm are counted, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from selfpatch.ops.artefacts import outlier_share


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("count", [0, 1, 6, 90])
def test_the_share_is_that_of_the_planted_outliers(count: int, scale: float) -> None:
    tokens = scale * torch.randn(2, 10, 10, 64, generator=torch.manual_seed(count))
    chosen = torch.randperm(200, generator=torch.manual_seed(1))[:count]
    tokens.view(200, 64)[chosen] *= 10
    assert float(outlier_share(tokens)) == pytest.approx(count / 200)


def test_neither_a_narrow_nor_a_wide_distribution_of_norms_has_outliers() -> None:
    directions = torch.nn.functional.normalize(torch.randn(1000, 8, generator=torch.manual_seed(0)), dim=1)
    equal = directions.clone()
    equal[0] *= 1.5  # any deviation exceeds a median deviation of nearly zero
    assert float(outlier_share(equal)) == 0
    spread = directions * torch.linspace(1, 5, 1000)[:, None]
    assert float(outlier_share(spread)) == 0
    assert float(outlier_share(torch.zeros(5, 3))) == 0


def test_broken_tokens_give_a_finite_share() -> None:
    tokens = torch.randn(100, 8, generator=torch.manual_seed(0))
    tokens[3] = float("nan")
    assert outlier_share(tokens).isfinite()
