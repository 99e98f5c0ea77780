"""Metrics by plain loops, pixels that count, and alignment."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selfpatch.evaluation.depth.metrics import depth_metrics, eigen_mask, fit_scale_and_shift, mean_metrics

LIMITS = (0.001, 10.0)


def test_metrics_equal_plain_loops() -> None:
    rng = np.random.default_rng(0)
    prediction, depth = rng.uniform(-1, 12, (9, 11)).astype(np.float32), rng.uniform(0, 11, (9, 11)).astype(np.float32)
    mask = rng.random((9, 11)) < 0.8
    pairs = [
        (min(max(float(p), 0.001), 10.0), float(d))
        for p, d, m in zip(prediction.flat, depth.flat, mask.flat, strict=True)
        if m and 0.001 < d < 10
    ]
    n = len(pairs)
    logs = [math.log(p) - math.log(d) for p, d in pairs]
    expected = {f"a{i}": sum(max(p / d, d / p) < 1.25**i for p, d in pairs) / n for i in (1, 2, 3)} | {
        "abs_rel": sum(abs(p - d) / d for p, d in pairs) / n,
        "rmse": math.sqrt(sum((p - d) ** 2 for p, d in pairs) / n),
        "log_10": sum(abs(math.log10(p) - math.log10(d)) for p, d in pairs) / n,
        "rmse_log": math.sqrt(sum(g**2 for g in logs) / n),
        "silog": 100 * math.sqrt(sum(g**2 for g in logs) / n - (sum(logs) / n) ** 2),
        "sq_rel": sum((p - d) ** 2 / d for p, d in pairs) / n,
        "mae": sum(abs(p - d) for p, d in pairs) / n,
        "pixels": n,
    }
    found = depth_metrics(*(torch.from_numpy(x) for x in (prediction, depth, mask)), limits=LIMITS)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_truth_is_perfect_and_twice_the_truth_is_not() -> None:
    depth = torch.rand(5, 5) * 4 + 0.5
    everything = torch.ones(5, 5, dtype=torch.bool)
    perfect = depth_metrics(depth, depth, everything, limits=LIMITS)
    assert perfect is not None
    assert (perfect["a1"], perfect["rmse"], perfect["silog"]) == (1, 0, 0)
    twice = depth_metrics(depth * 2, depth, everything, limits=LIMITS)
    assert twice is not None
    assert (twice["a1"], twice["a3"]) == (0, 0)
    assert twice["abs_rel"] == pytest.approx(1, rel=1e-5)
    assert twice["silog"] == pytest.approx(0, abs=1e-3)
    aligned = depth_metrics(depth * 2 - 1, depth, everything, limits=LIMITS, align=True)
    assert aligned is not None
    assert aligned["rmse"] == pytest.approx(0, abs=1e-5)


def test_scale_and_shift_are_recovered() -> None:
    depth = torch.linspace(1, 9, 40)
    torch.testing.assert_close(fit_scale_and_shift((depth - 0.5) / 3, depth), torch.tensor([3.0, 0.5]))


def test_a_map_without_a_valid_pixel_has_no_metrics() -> None:
    ones, unknown = torch.ones(2, 2), torch.tensor([[0.0, 0.001], [10.0, 12.0]])
    assert depth_metrics(ones, unknown, ones.bool(), limits=LIMITS) is None
    assert depth_metrics(ones, ones, ~ones.bool(), limits=LIMITS) is None


def test_the_window_of_eigen() -> None:
    mask = eigen_mask(480, 640)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (45, 470, 41, 600)
    assert int(mask.sum()) == 426 * 560
    small = eigen_mask(48, 64)
    assert int(small.sum()) == (47 - 4) * (60 - 4)


def test_images_weigh_the_same() -> None:
    assert mean_metrics([{"rmse": 1.0, "pixels": 10}, {"rmse": 2.0, "pixels": 1000}])["rmse"] == 1.5
