"""Logistic regression on patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from scipy.special import log_softmax

from selfpatch.evaluation.segmentation.logistic import solve_logistic


def test_logistic_regression_is_the_minimum() -> None:
    """Of SciPy too, on the same function of weights and bias, with features of any mean and scale."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 5)) * [1, 10, 0.1, 3, 0] + [0, 50, 0, -2, 7]
    labels = rng.dirichlet([0.3, 0.3, 0.3], size=80)
    labels[:, 0] += (features[:, 1] > 50) * 2
    labels /= labels.sum(1, keepdims=True)
    classify = solve_logistic(torch.tensor(features), torch.tensor(labels), weight_decay=0.01, iterations=500)
    standard = (features - features.mean(0)) / features.std(0).clip(1e-6)

    def loss(parameters: np.ndarray) -> float:
        weight, bias = parameters[:15].reshape(3, 5), parameters[15:]
        logits = standard @ weight.T + bias
        return float(-(labels * log_softmax(logits, 1)).sum(1).mean() + 0.005 * (weight**2).sum())

    ours = np.concatenate([classify.weight.flatten(), classify.bias])
    assert loss(ours) == pytest.approx(minimize(loss, np.zeros(18), tol=1e-10).fun, abs=1e-6)
    logits = classify(torch.tensor(features)).numpy()
    assert_allclose(logits, standard @ ours[:15].reshape(3, 5).T + ours[15:], atol=1e-8)


def test_progress_counts_iterations() -> None:
    rng = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 4, generator=rng), torch.rand(30, 3, generator=rng).softmax(1)
    told: list[tuple[str, int, int]] = []
    solve_logistic(features, labels, weight_decay=0.01, iterations=5, progress=lambda *report: told.append(report))
    assert {(what, total) for what, _, total in told} == {("L-BFGS", 5)}
    assert sorted({done for _, done, _ in told})[:3] == [0, 1, 2]
