"""Matching views: geometry by hand, chance for noise, certainty for identical views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfpatch.data.augment.multicrop import ViewRecipe
from selfpatch.evaluation.encoders import RawPatch
from selfpatch.evaluation.view_matching import make_view_pairs, matching_hits, view_matching


def boxes(*rows: tuple[float, float, float, float, int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def distinct(h: int, w: int) -> Tensor:
    return torch.eye(h * w).view(1, h, w, h * w)


def share(features_a: Tensor, features_b: Tensor, a: Tensor, b: Tensor) -> float:
    correct, inside = matching_hits(features_a, features_b, a, b)
    return float(correct.sum() / inside.sum())


WHOLE = boxes((0, 0, 60, 40, 0))


def test_identical_views() -> None:
    correct, inside = matching_hits(distinct(4, 6), distinct(4, 6), WHOLE, WHOLE)
    assert inside.all()
    assert correct.all()


def test_a_flipped_view() -> None:
    mirrored = boxes((0, 0, 60, 40, 1))
    features = distinct(4, 6)
    assert share(features, features.flip(2), WHOLE, mirrored) == 1.0
    # Matched to the unflipped columns 0..5, the true ones being 5..0, the two in the middle are one patch off.
    assert share(features, features, WHOLE, mirrored) == pytest.approx(2 / 6)
    assert share(features.flip(2), features.flip(2), mirrored, mirrored) == 1.0


def test_a_shifted_view() -> None:
    """View b begins two patches to the right and one down: 4 x 3 of its 6 x 4 patches are seen in a."""
    shifted = boxes((20, 10, 60, 40, 0))
    features = distinct(4, 6)
    moved = features.roll((-1, -2), dims=(1, 2))
    correct, inside = matching_hits(features, moved, WHOLE, shifted)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1:, 2:] = True
    assert torch.equal(inside.view(4, 6), expected)
    assert torch.equal(correct, inside)


@pytest.mark.parametrize(("off", "right"), [(1, True), (2, False)])
def test_one_patch_off_is_near_enough(off: int, right: bool) -> None:
    features = distinct(5, 5)
    image = boxes((3, 7, 35, 35, 0))
    for dim in (1, 2):
        correct, _ = matching_hits(features, features.roll(off, dim), image, image)
        inner = correct.view(5, 5).movedim(dim - 1, 0)[: 5 - off]  # the others came in on the far side
        assert bool(inner.all()) is right
        assert bool(inner.any()) is right


def test_a_magnified_view() -> None:
    """View b is the left upper quarter of view a: 2 x 2 patches of a lie in it, each 2 x 2 patches of b large."""
    quarter = boxes((0, 0, 20, 20, 0))
    whole = boxes((0, 0, 40, 40, 0))
    a, b = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 8)
    a[0, 1, 0] = b[0, 3, 1] * 5  # true place of patch (1, 0): row 3, column 1 of b's grid, counted in edges
    correct, inside = matching_hits(a, b, whole, quarter)
    assert inside.view(4, 4).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert correct.view(4, 4)[1, 0]


def test_noise_is_near_chance() -> None:
    """Inside the grid 9 of 14 x 14 places are right; at the border fewer."""
    torch.manual_seed(0)
    image = boxes((0, 0, 224, 224, 0)).expand(40, 5)
    found = share(torch.randn(40, 14, 14, 32), torch.randn(40, 14, 14, 32), image, image)
    chance = (3 * 12 + 2 * 2) ** 2 / 14**4
    assert found == pytest.approx(chance, rel=0.15)


def test_pairs_from_images() -> None:
    """Noise images cropped without resizing: raw patches find themselves only where the grids fall together."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(3)]
    whole = ViewRecipe(size=32, scale=(1.0, 1.0), ratio=(1.5, 1.5))
    pairs = make_view_pairs(images, (whole, whole), seed=3)
    assert pairs.views_a.shape == (3, 3, 32, 32)
    assert pairs.boxes_b.tolist() == [[0, 0, 48, 32, 0]] * 3
    assert view_matching(RawPatch(8), *pairs) == 1.0
    crops = ViewRecipe(size=32, scale=(0.3, 0.8), flip=0.5)
    drawn = make_view_pairs(images, (crops, crops), seed=3)
    assert not torch.equal(drawn.boxes_a, drawn.boxes_b)
    again = make_view_pairs(images, (crops, crops), seed=3)
    assert all(torch.equal(x, y) for x, y in zip(drawn, again, strict=True))
    assert view_matching(RawPatch(8), *drawn, batch=1) == pytest.approx(view_matching(RawPatch(8), *drawn))


def test_views_that_do_not_meet() -> None:
    views = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="none of the 1 pairs of views overlap"):
        view_matching(RawPatch(8), views, views, boxes((0, 0, 16, 16, 0)), boxes((100, 0, 16, 16, 0)))
