"""Matches and recalls by plain loops, in the coordinates of the sphere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfpatch.evaluation.geometric_correspondence.config import NAVIConfig, Selection
from selfpatch.evaluation.geometric_correspondence.dataset import Pair, open_pairs
from selfpatch.evaluation.geometric_correspondence.metrics import (
    Matches,
    ScoredPair,
    angle_rows,
    match_features,
    match_positions,
    mean_recalls,
    recalls,
)
from selfpatch.evaluation.geometric_correspondence.views import Surface, load_surface
from tests.evaluation.geometric_correspondence.conftest import ANGLES, object_points

CONFIG = NAVIConfig(resolution=64, every=1)


@pytest.mark.parametrize("selection", ["ratio", "cosine"])
def test_matches_equal_plain_loops(selection: Selection) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 5)), rng.normal(size=(30, 5))
    weighed = []
    for i, f in enumerate(first):
        distances = [1 - f @ g / np.linalg.norm(f) / np.linalg.norm(g) for g in second]
        order = np.argsort(distances)
        nearest, other = distances[order[0]], distances[order[1]]
        weighed.append((1 - nearest / other if selection == "ratio" else 1 - nearest, i, int(order[0])))
    expected = sorted(weighed, reverse=True)[:12]
    found = match_features(torch.from_numpy(first), torch.from_numpy(second), count=12, selection=selection)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(i, j) for _, i, j in expected]
    by_other = match_features(
        torch.from_numpy(first),
        torch.from_numpy(second),
        count=12,
        selection="cosine" if selection == "ratio" else "ratio",
    )
    assert by_other.first.tolist() != found.first.tolist()


def test_one_point_in_the_second_view() -> None:
    found = match_features(torch.randn(4, 3), torch.randn(1, 3), count=9, selection="ratio")
    assert found.first.tolist() == [0, 1, 2, 3]
    assert found.second.tolist() == [0] * 4


def both(navi: Path) -> tuple[Pair, tuple[Surface, Surface]]:
    views = {first.name: first for first, _ in open_pairs(navi, CONFIG)}
    pair = views["000"], views["001"]
    first, second = (load_surface(view, CONFIG.resolution, 4) for view in pair)
    assert first is not None
    assert second is not None
    return pair, (first, second)


def test_recalls_equal_distances_on_the_sphere(navi: Path) -> None:
    """An error is the distance of two points of the object, whatever the cameras."""
    pair, surfaces = both(navi)
    points = [object_points(surface.points[surface.mask], ANGLES[i]) for i, surface in enumerate(surfaces)]
    rng = np.random.default_rng(0)
    near = [int(np.linalg.norm(points[1] - p, axis=1).argmin()) for p in points[0][:100]]
    second = [j if i % 2 else int(rng.integers(len(points[1]))) for i, j in enumerate(near)]
    found = recalls(Matches(torch.arange(100), torch.tensor(second)), surfaces, pair, CONFIG)
    errors = np.array([np.linalg.norm(points[0][i] - points[1][j]) for i, j in enumerate(second)])
    shares = [float((errors < 10 * limit).mean()) for limit in (1, 2, 5)]
    assert [found[f"recall@{limit}cm"] for limit in (1, 2, 5)] == pytest.approx(shares, abs=0.011)
    assert 0.1 < shares[0] < shares[2] < 1
    assert found["recall"] == pytest.approx(np.mean(shares), abs=0.011)
    swapped = recalls(Matches(torch.arange(100), torch.tensor(second)), surfaces, (pair[1], pair[0]), CONFIG)
    assert abs(swapped["recall"] - found["recall"]) > 0.05, "the inverse of the pose is another pose"


def test_positions_are_matched_to_the_nearest(navi: Path) -> None:
    _, surfaces = both(navi)
    found = match_positions(*surfaces, count=50)
    cells = [surface.mask.nonzero().numpy() for surface in surfaces]
    assert len(found.first) == 50
    for i, j in zip(found.first.tolist(), found.second.tolist(), strict=True):
        distances = np.linalg.norm(cells[1] - cells[0][i], axis=1)
        assert distances[j] == distances.min()


def test_means_and_rows_by_angle() -> None:
    names = ("recall", "recall@1cm", "recall@2cm", "recall@5cm", "recall@5px")
    scored = [
        ScoredPair(str(i), angle, dict.fromkeys(names, value), dict.fromkeys(names, 0.0))
        for i, (angle, value) in enumerate([(10, 1.0), (29.9, 0.5), (30, 0.0), (120, 0.2)])
    ]
    assert mean_recalls(scored)["recall"] == pytest.approx(1.7 / 4)
    assert mean_recalls(scored)["baseline:position recall@1cm"] == 0
    rows = angle_rows(scored, CONFIG)
    assert [(row["angle"], row["pairs"], row["recall"]) for row in rows] == [
        ("0 to 30", 2, 0.75), ("30 to 60", 1, 0.0), ("90 to 120", 1, 0.2),
    ]  # fmt: skip
