"""Matches between views: geometry by hand, chance for noise, certainty for identical views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfpatch.evaluation.view_matching import metrics
from selfpatch.evaluation.view_matching.metrics import MatchCounts, count_matches, match_patches, total_counts


def boxes(*rows: tuple[float, float, float, float, int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def distinct(h: int, w: int) -> Tensor:
    return torch.eye(h * w).view(1, h, w, h * w)


def share(features_a: Tensor, features_b: Tensor, a: Tensor, b: Tensor) -> float:
    total = total_counts(count_matches(match_patches(features_a, features_b, a, b)))
    return total.correct / total.inside


WHOLE = boxes((0, 0, 60, 40, 0))


def test_identical_views() -> None:
    correct, inside, *_ = match_patches(distinct(4, 6), distinct(4, 6), WHOLE, WHOLE)
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
    correct, inside, *_ = match_patches(features, moved, WHOLE, shifted)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1:, 2:] = True
    assert torch.equal(inside.view(4, 6), expected)
    assert torch.equal(correct, inside)


@pytest.mark.parametrize(("off", "right"), [(1, True), (2, False)])
def test_one_patch_off_is_near_enough(off: int, right: bool) -> None:
    features = distinct(5, 5)
    image = boxes((3, 7, 35, 35, 0))
    for dim in (1, 2):
        correct, *_ = match_patches(features, features.roll(off, dim), image, image)
        inner = correct.view(5, 5).movedim(dim - 1, 0)[: 5 - off]  # the others came in on the far side
        assert bool(inner.all()) is right
        assert bool(inner.any()) is right


def test_a_magnified_view() -> None:
    """View b is the left upper quarter of view a: 2 x 2 patches of a lie in it, each 2 x 2 patches of b large."""
    quarter = boxes((0, 0, 20, 20, 0))
    whole = boxes((0, 0, 40, 40, 0))
    a, b = torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 8)
    a[0, 1, 0] = b[0, 3, 1] * 5  # true place of patch (1, 0): row 3, column 1 of b's grid, counted in edges
    correct, inside, *_ = match_patches(a, b, whole, quarter)
    assert inside.view(4, 4).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert correct.view(4, 4)[1, 0]


def test_noise_is_near_chance() -> None:
    """Inside the grid 9 of 14 x 14 places are right; at the border fewer."""
    torch.manual_seed(0)
    image = boxes((0, 0, 224, 224, 0)).expand(40, 5)
    found = share(torch.randn(40, 14, 14, 32), torch.randn(40, 14, 14, 32), image, image)
    chance = (3 * 12 + 2 * 2) ** 2 / 14**4
    assert found == pytest.approx(chance, rel=0.15)


def test_chance_is_the_share_that_random_matches_reach() -> None:
    torch.manual_seed(0)
    a, b = boxes((0, 0, 60, 40, 0)).expand(60, 5), boxes((13, 7, 50, 45, 1)).expand(60, 5)
    matches = match_patches(torch.randn(60, 8, 8, 16), torch.randn(60, 6, 9, 16), a, b)
    total = total_counts(count_matches(matches))
    assert 0 < total.inside < 60 * 64
    assert total.by_chance / total.inside == pytest.approx(total.correct / total.inside, rel=0.15)


def test_chance_by_hand() -> None:
    """A patch has itself and its neighbours in reach: 9 of 20 in the middle, 6 at the sides, 4 in the corners."""
    image = boxes((0, 0, 50, 40, 0))
    near = match_patches(distinct(4, 5), distinct(4, 5), image, image).chance.view(4, 5) * 20
    assert near.tolist() == [[4, 6, 6, 6, 4], [6, 9, 9, 9, 6], [6, 9, 9, 9, 6], [4, 6, 6, 6, 4]]


def test_blocks_of_similarities_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    features, image = torch.randn(2, 5, 4, 4, 8), boxes((0, 0, 40, 40, 0)).expand(5, 5)
    whole = match_patches(*features, image, image)
    monkeypatch.setattr(metrics, "rows_at_once", lambda columns: 2)
    for expected, found in zip(whole, match_patches(*features, image, image), strict=True):
        assert torch.equal(found, expected)


def test_counts() -> None:
    image = boxes((0, 0, 40, 40, 0), (0, 0, 40, 40, 0))
    beside = boxes((20, 0, 40, 40, 0), (100, 0, 40, 40, 0))
    features = distinct(4, 4).expand(2, 4, 4, 16)
    first, second = count_matches(match_patches(features, features, image, beside))
    assert (first.correct, first.inside) == (0, 8)
    assert second == MatchCounts(0, 0, 0.0)
    assert total_counts([first, second]) == first
    with pytest.raises(ValueError, match=r"no two views of an image overlap \(1 pair\); use more images"):
        total_counts([second])
